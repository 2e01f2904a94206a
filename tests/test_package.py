"""The package in a project that has modules called like ours, as its users would install it."""

import ast
import os
import subprocess
import sys

import pytest
import torch
from helpers import write_images

from hyperiqa.model import checkpoints
from hyperiqa.scoring import quality_model
from common import VERSION, packaging
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone

DESCRIPTION = {
    "backbone": "swin_nano", "fusion": "none", "patch_size": 64, "resize": "72", "exif_rotate": False, "seed": 7,
    "dataset": "livec", "score_range": [0.0, 100.0], "higher_is_better": True, "test_crop": "grid", "test_patch_num": 3,
}  # fmt: skip
OTHERS = (
    "options",
    "models",
    "engine",
    "checkpoints",
    "fusion",
    "metrics",
    "common/__init__",
    "reading/__init__",
    "inference",
)


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
        [sys.executable, "-c", theirs + code], cwd=project, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_an_installed_package_scores_in_a_project_with_modules_like_ours(project, tmp_path):
    pytest.importorskip("setuptools")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        tmp_path / "site",
    ]
    source = tmp_path / "source"  # a copy: building leaves files where it works
    source.mkdir()
    for name in (
        "setup.py",
        "pyproject.toml",
        "requirements.txt",
        *(path.name for path in packaging.HERE.glob("*.py")),
    ):
        (source / name).write_bytes((packaging.HERE / name).read_bytes())
    for package in ("common", "reading"):
        (source / package).mkdir()
        for path in (packaging.HERE / package).glob("*.py"):
            (source / package / path.name).write_bytes(path.read_bytes())
    done = subprocess.run([*pip, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import hyperiqa\nprint(hyperiqa.load('m.pkl').score('a.png'), hyperiqa.__version__, hyperiqa.__file__)"
    score, version, file = run(project[0], code, PYTHONPATH=str(tmp_path / "site"))
    assert float(score) == project[1] and version == VERSION and file.startswith(str(tmp_path / "site"))
    assert sorted(path.name for path in (tmp_path / "site").iterdir() if path.suffix != ".dist-info") == ["hyperiqa"]


def test_torch_hub_loads_in_a_project_with_modules_like_ours(project):
    code = f"import torch\nm = torch.hub.load({str(packaging.HERE)!r}, 'hyperiqa', 'm.pkl', source='local', crops=3)\nprint(m.score('a.png'))"
    assert float(run(project[0], code)[0]) == project[1]


def test_every_import_of_ours_is_under_the_new_name(tmp_path):
    packaging.write_package(tmp_path / "renamed")
    own = {path.stem for path in packaging.HERE.glob("*.py")} | {"common", "reading", "comparing", "scoring"}
    files = list((tmp_path / "renamed").rglob("*.py"))
    assert {"inference.py", "models.py", "__init__.py"} <= {path.name for path in files}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not own & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in own, path
    assert not {"HyperIQASolver.py", "compare_logs.py", "train_swin.py"} & {path.name for path in files}
