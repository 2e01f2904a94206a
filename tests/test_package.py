"""The package in a project that has modules called like ours, as its users would install it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import write_images

from hyperiqa.base.files import CHECKOUT
from hyperiqa.base.version import VERSION
from hyperiqa.model import checkpoints
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.scoring import quality_model

DESCRIPTION = {
    "backbone": "swin_nano",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "seed": 7,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "grid",
    "test_patch_num": 3,
}
OTHERS = (
    "options",
    "models",
    "engine",
    "fusion",
    "metrics",
    "common/__init__",
    "training/__init__",
    "scoring/__init__",
)
# Modules of the standard library that Windows does not have.
POSIX = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with modules of its own, a model, a photo, and its score."""
    place = tmp_path_factory.mktemp("project")
    for name in OTHERS:
        (place / name).parent.mkdir(exist_ok=True)
        (place / f"{name}.py").write_text("MINE = True\n")
    torch.manual_seed(0)
    net = HyperNet(SwinBackbone("swin_nano", patch_size=64), "none")
    checkpoints.save(place / "m.pkl", checkpoints.portable_state(net, DESCRIPTION))
    write_images(place, ["a.png"])
    return place, quality_model.load(place / "m.pkl").score(place / "a.png")


def run(project, code, **env):
    names = ", ".join(name.split("/")[0] for name in OTHERS)
    theirs = f"import {names}\nassert all(each.MINE for each in ({names},))\n"
    found = subprocess.run(
        [sys.executable, "-c", theirs + code],
        cwd=project,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that `pip install .` of this checkout fills; built from a copy, since building leaves files."""
    pytest.importorskip("setuptools")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "requirements.txt", "train_swin.py", "HyperIQASolver.py"):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(
        CHECKOUT / "hyperiqa", source / "hyperiqa", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        site,
    ]
    done = subprocess.run([*pip, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return site


def test_an_installed_package_scores_in_a_project_with_modules_like_ours(project, installed):
    code = "import hyperiqa\nprint(hyperiqa.load('m.pkl').score('a.png'), hyperiqa.__version__, hyperiqa.__file__)"
    score, version, file = run(project[0], code, PYTHONPATH=str(installed))
    assert float(score) == project[1] and version == VERSION and file.startswith(str(installed))


def test_the_package_is_installed_whole_and_under_one_name(installed):
    there = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert there == {"hyperiqa", "bin"}
    files = {
        path.relative_to(CHECKOUT)
        for path in (CHECKOUT / "hyperiqa").rglob("*.*")
        if path.suffix != ".pyc"
    }
    assert files <= {path.relative_to(installed) for path in installed.rglob("*.*")}


def test_the_installed_command_scores_images(project, installed):
    words = [installed / "bin" / "hyperiqa", "m.pkl", "a.png"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=project[0], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, row = done.stdout.splitlines()
    assert header == "image,score,error,made_with" and float(row.split(",")[1]) == pytest.approx(
        project[1], abs=1e-4
    )
    mistake = subprocess.run(
        [*words[:1], "none.pkl", "a.png"],
        cwd=project[0],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert mistake.returncode == 2 and mistake.stderr.startswith("error: none.pkl: no such file")


def test_an_installed_package_leaves_nothing_in_site_packages(project, installed):
    code = "from hyperiqa.base.files import HERE\nfrom hyperiqa.base.version import versions\nprint(HERE, versions()['commit'])"
    assert run(project[0], code, PYTHONPATH=str(installed)) == [str(project[0]), "unknown"]


def test_importing_the_package_imports_no_torch(project):
    code = "import sys, hyperiqa\nprint('torch' in sys.modules)\nhyperiqa.load\nprint('torch' in sys.modules)"
    assert run(project[0], code, PYTHONPATH=str(CHECKOUT)) == ["False", "True"]


def test_scoring_needs_no_module_that_windows_lacks(project):
    hidden = f"import sys\nimport torch, timm, torchvision\nfor name in {POSIX}: sys.modules[name] = None\n"
    code = (
        hidden
        + "import hyperiqa\nimport hyperiqa.__main__\nprint(hyperiqa.load('m.pkl').score('a.png'))"
    )
    assert float(run(project[0], code, PYTHONPATH=str(CHECKOUT))[0]) == project[1]


def test_torch_hub_loads_in_a_project_with_modules_like_ours(project):
    code = f"import torch\nm = torch.hub.load({str(CHECKOUT)!r}, 'hyperiqa', 'm.pkl', source='local', crops=3)\nprint(m.score('a.png'))"
    assert float(run(project[0], code)[0]) == project[1]
