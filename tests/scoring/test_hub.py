"""Against a small hub on this machine, through the real client, as a user's shell would."""

import json

import pytest
import torch
import yaml
from helpers import write_images
from hub import serving
from processes import Launcher

import export
from hyperiqa.model import checkpoints, factory
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.scoring import quality_model

DESCRIPTION = {
    "backbone": "swin_nano",
    "fusion": "attention",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "seed": 7,
    "dataset": "livec",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "test_crop": "center",
    "test_patch_num": 25,
    "run": "a_run",
    "metrics": {"test": {"srcc": 0.75, "plcc": float("nan")}, "spaq": {"srcc": 0.5}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    net = HyperNet(SwinBackbone("swin_nano", patch_size=64), "attention")
    checkpoints.save(folder / "m.pkl", checkpoints.portable_state(net, DESCRIPTION))
    write_images(folder / "photos", ["a.png", "b.png"])
    return folder


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def tool(place, server, tmp_path):
    """tool(script, *words): the script's answer; offline: by a process without network."""
    launchers = {}

    def run(script, *words, code=0, offline=False, token="hf_test"):
        # The Hub's client reads its settings when it is imported: a launcher for each.
        if offline not in launchers:
            settings = {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HOME": str(place / "home"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_OFFLINE": str(int(offline)),
            }
            launchers[offline] = Launcher(tmp_path, **settings)
        done = launchers[offline].tool(script, *words, cwd=place, environment={"HF_TOKEN": token})
        assert done.returncode == code, done.stderr
        return done

    yield run
    for launcher in launchers.values():
        launcher.close()


def rows(done):
    return [line.split(",")[:2] for line in done.stdout.splitlines()[1:]]


def test_a_model_is_pushed_pulled_and_read_without_network(tool, place, server):
    done = tool("export.py", "m.pkl", "--push", "ada/koniq", "--private")
    assert done.stdout.splitlines()[-1] == f"http://127.0.0.1:{server.server_port}/ada/koniq"
    repo = server.repos["ada/koniq"]
    assert repo["private"] is True and set(repo["commits"]["main"]) >= {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    own, first = rows(tool("predict.py", "m.pkl", "photos")), repo["head"]
    assert len(own) == 2 and rows(tool("predict.py", "hf://ada/koniq", "photos")) == own
    # A second version: the newest is what a name means, and each stays to be had by its revision.
    state, d = checkpoints.load_model(place / "m.pkl")
    checkpoints.save(place / "m2.pkl", checkpoints.portable_state(_scaled(state, d), d))
    tool("export.py", "m2.pkl", "--push", "ada/koniq")
    second = rows(tool("predict.py", "hf://ada/koniq", "photos"))
    assert second != own and second == rows(tool("predict.py", "m2.pkl", "photos"))
    assert rows(tool("predict.py", f"hf://ada/koniq@{first}", "photos")) == own
    # A pull request, and what a browser's address bar shows.
    repo["commits"]["refs/pr/1"] = repo["commits"][first]
    address = f"http://127.0.0.1:{server.server_port}/ada/koniq"
    for place_on_hub in ("hf://ada/koniq@refs/pr/1", f"{address}/tree/refs%2Fpr%2F1"):
        assert rows(tool("predict.py", place_on_hub, "photos")) == own
    assert rows(tool("predict.py", f"{address}/blob/main/model.safetensors", "photos")) == second
    server.shutdown()
    server.server_close()
    assert rows(tool("predict.py", "hf://ada/koniq", "photos", offline=True)) == second
    assert (
        rows(tool("predict.py", f"hf://ada/koniq@{first}", "photos")) == own
    )  # no answer, but it is at hand
    cache = place / "home" / "hub" / "models--ada--koniq"
    assert {path.name for path in (cache / "snapshots").iterdir()} == {first, repo["head"]}
    done = tool("predict.py", "hf://ada/other", "photos", code=2, offline=True)
    assert done.stderr.startswith("error: hf://ada/other: model.safetensors cannot be downloaded: ")
    assert done.stderr.count("\n") == 1


def _scaled(state, d):
    net = factory.build(d)
    net.load_state_dict(state, strict=False)
    net.rescale(0.5, 10)
    return net


def test_what_is_not_there_is_said_in_one_line(tool):
    tool("export.py", "m.pkl", "--push", "ada/koniq")
    for name, said in (
        ("ada/none", "hf://ada/none: model.safetensors cannot be downloaded: "),
        ("ada/koniq@v9", "hf://ada/koniq@v9"),
        ("ada/koniq/x.pkl", "hf://ada/koniq: x.pkl cannot be downloaded: "),
    ):
        done = tool("predict.py", f"hf://{name}", "photos", code=2)
        assert done.stderr.startswith(f"error: {said}"), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    done = tool("export.py", "m.pkl", "--push", "ada/koniq", code=2, token="hf_wrong")
    assert done.stderr.startswith("error: --push ada/koniq: ") and "hf auth login" in done.stderr


def test_the_card_has_the_figures_and_no_nan(launcher, place):
    done = launcher.tool("export.py", "m.pkl", "m.hub", cwd=place)
    assert done.returncode == 0, done.stderr
    text = (place / "m.hub" / "README.md").read_text()
    data = yaml.safe_load(text.split("---\n")[1])
    found = {
        (r["dataset"]["type"], m["type"]): m["value"]
        for r in data["model-index"][0]["results"]
        for m in r["metrics"]
    }
    assert found == {("livec", "srcc"): 0.75, ("spaq", "srcc"): 0.5}
    assert data["library_name"] == "hyperiqa" and {"swin_nano", "image-quality-assessment"} <= set(
        data["tags"]
    )
    assert (
        "| livec |  | SRCC | 0.7500 |" in text
        and 'load("hf://USER/m")' in text
        and "(here" not in text
    )
    config = json.loads((place / "m.hub" / "config.json").read_text())
    assert config["backbone"] == "swin_nano" and config["metrics"]["test"]["plcc"] is None
    model = quality_model.load(place / "m.hub" / "model.safetensors")
    assert model.score(place / "photos" / "a.png") == quality_model.load(place / "m.pkl").score(
        place / "photos" / "a.png"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m.pkl", "--push", "name"], "--push name: expected USER/NAME"),
        (
            ["m.pkl", "x.onnx", "--push", "a/b"],
            "contradictory flags: --push uploads the model; OUTPUT and --format write it here",
        ),
        (["m.pkl", "--private"], "--private needs --push"),
        (
            ["nosuch", "--push", "a/b"],
            "nosuch: no such file or folder; expected a model file, a run's folder, hf://USER/NAME or a public model (koniq, koniq-authors)",
        ),
    ],
)
def test_mistakes(run_main, place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    assert run_main("export.py", export.main, *words, code=2).stderr == f"error: {said}\n"
