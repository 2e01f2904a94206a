"""The demo data set: layout, scores, distortions, determinism, and what happens when a build does not get through."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_demo_dataset
from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets import demo_distortions, demo_images as demo, demo_scenes
from hyperiqa.datasets.demo_scores import quality

SCRIPT = Path(make_demo_dataset.__file__)
COUNTS = {"train": 23, "test": 9, "spaq": 8}
SPLITS = {"train": "koniq-10k/train", "test": "koniq-10k/test", "spaq": "spaq-test"}
LISTS = {
    "train": "koniq-10k/koniq_train.json",
    "test": "koniq-10k/koniq_test.json",
    "spaq": "spaq-test/spaq_test.json",
}
FOLDERS = {"train": "koniq_train", "test": "koniq_test", "spaq": "spaq_test"}
TABLE = "koniq-10k/koniq10k_scores_and_distributions.csv"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "demo"
    demo.build(out, seed=3, processes=2, **COUNTS)
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def table(root: Path) -> list[dict[str, str]]:
    with (root / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_tool(lambda: make_demo_dataset.main([str(word) for word in argv]))
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_the_layout_is_that_of_koniq_and_spaq(built):
    header = (built / TABLE).read_text().splitlines()[0]
    assert header == "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    files = {name for name in contents(built) if not name.endswith(".jpg")}
    assert files == {TABLE, *LISTS.values()}
    for split, folder in SPLITS.items():
        entries = json.loads((built / LISTS[split]).read_text())
        assert len(entries) == COUNTS[split]
        assert all(set(entry) == {"image", "score"} for entry in entries)
        parents, names = zip(*(entry["image"].split("/") for entry in entries))
        assert set(parents) == {FOLDERS[split]}
        assert sorted(names) == sorted(path.name for path in (built / folder).glob("*.jpg"))
    base_names = [Path(name).name for name in contents(built)]
    assert len(set(base_names)) == len(base_names)


def test_every_image_is_an_rgb_jpeg_of_512x384(built):
    for path in built.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 384))


def test_the_table_agrees_with_the_lists_and_with_itself(built):
    rows = table(built)
    listed = [
        e for split in ("train", "test") for e in json.loads((built / LISTS[split]).read_text())
    ]
    scores = {entry["image"].split("/")[1]: entry["score"] for entry in listed}
    assert {row["image_name"]: float(row["MOS_zscore"]) for row in rows} == scores
    for row in rows:
        counts = np.array([int(row[f"c{grade}"]) for grade in range(1, 6)])
        mos, score, total = float(row["MOS"]), float(row["MOS_zscore"]), int(row["c_total"])
        assert counts.sum() == total and 95 <= total <= 115 and 0 <= score <= 100
        assert mos == pytest.approx(1 + score / 25, abs=1e-5)
        assert mos == pytest.approx(counts @ np.arange(1, 6) / total, abs=1e-5)
        spread = np.repeat(np.arange(1, 6), counts).std(ddof=1)
        assert float(row["SD"]) == pytest.approx(spread, abs=1e-5)


def test_a_score_is_that_of_the_image_beside_its_scene(built):
    """The SPAQ-like ones too, which are rated on another scale."""
    rows = {row["image_name"]: float(row["MOS_zscore"]) for row in table(built)}
    spaq = json.loads((built / LISTS["spaq"]).read_text())
    rows |= {entry["image"].split("/")[1]: entry["score"] for entry in spaq}
    split_numbers = {name: number for number, name in enumerate(SPLITS)}
    for name in sorted(rows)[::6]:
        split, i, _ = name.split("_", 2)
        domain, offset, slope = (
            (demo_scenes.SPAQ, 10, 0.8) if split == "spaq" else (demo_scenes.KONIQ, 3, 0.94)
        )
        seed = np.random.SeedSequence((3, split_numbers[split], int(i) // 4, 1))
        scene = demo_scenes.make_scene(np.random.default_rng(seed), domain)
        with Image.open(built / SPLITS[split] / name) as image:
            greys = [
                np.asarray(Image.fromarray(scene).convert("L")),
                np.asarray(image.convert("L")),
            ]
        # Five standard deviations of the raters' mean, and what JPEG at quality 95 changes.
        expected = offset + slope * quality(*(grey.astype(np.float32) for grey in greys))
        assert abs(rows[name] - expected) < 16, name


def test_same_seed_same_bytes_whatever_the_number_of_processes(built, tmp_path):
    demo.build(tmp_path / "again", seed=3, processes=1, **COUNTS)
    assert contents(tmp_path / "again") == contents(built)


def test_an_image_depends_on_its_address_alone(tmp_path):
    def pixels(*address: int) -> np.ndarray:
        path = tmp_path / "image.jpg"
        demo.make_image(demo.Task(address, demo_scenes.KONIQ, demo.PRISTINE, 0, path))
        return np.asarray(Image.open(path)).astype(float)

    first = pixels(3, 0, 0)
    assert np.array_equal(first, pixels(3, 0, 0))
    # The first four images of a split are of one scene.
    assert np.array_equal(first, pixels(3, 0, 3))
    for other in ((4, 0, 0), (3, 1, 0), (3, 0, 4)):
        assert np.abs(first - pixels(*other)).mean() > 20


@pytest.mark.parametrize("count", [8, 41, 60, 105, 200, 360])
def test_kinds_and_levels_are_balanced(count):
    planned = demo.plan(count)
    distorted = [pair for pair in planned if pair != ("pristine", 0)]
    assert len(planned) == count and len(planned) - len(distorted) == count // 24
    everything = [(kind, level) for kind in demo_distortions.KINDS for level in range(1, 6)]
    for counted, values in (
        (Counter(kind for kind, _ in distorted), list(demo_distortions.KINDS)),
        (Counter(level for _, level in distorted), range(1, 6)),
        (Counter(distorted), everything),
    ):
        assert set(counted) <= set(values)
        numbers = [counted[value] for value in values]
        assert max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize("taken", ["a folder that is not empty", "a file"])
def test_what_is_there_already_is_not_touched(tmp_path, capsys, taken):
    out = tmp_path / "demo"
    mine = out
    if taken != "a file":
        out.mkdir()
        mine = out / "mine.txt"
    mine.write_text("mine")
    said = refused(capsys, out)
    assert str(out) in said and "expected a new or empty folder" in said and taken in said
    assert mine.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "7"], "--train 7: expected a whole number of at least 8"),
        (["--test", "0"], "--test 0: expected a whole number of at least 8"),
        (["--spaq", "-1"], "--spaq -1: expected a whole number of at least 8"),
        (["--seed", "-1"], "--seed -1: expected"),
        (["--seed", "x"], "--seed"),
        (["--sed", "1"], "--sed"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(tmp_path, capsys, flags, message):
    assert message in refused(capsys, tmp_path / "demo", *flags)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file" / "demo") in refused(capsys, tmp_path / "file" / "demo")


def test_a_pillow_without_jpeg2000_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo.features, "check", lambda name: name != "jpg_2000")
    assert "jpg_2000" in refused(capsys, tmp_path / "demo")


def test_an_empty_folder_is_filled_with_the_counts_of_the_flags(tmp_path):
    (tmp_path / "demo").mkdir()
    make_demo_dataset.main([str(tmp_path / "demo"), "--train", "9", "--test", "8", "--spaq", "10"])
    numbers = [len(json.loads((tmp_path / "demo" / name).read_text())) for name in LISTS.values()]
    assert numbers == [9, 8, 10] and len(table(tmp_path / "demo")) == 17
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(tasks: list, processes: int) -> None:
        tasks[0].path.write_text("half an image")
        raise RuntimeError("broken")

    monkeypatch.setattr(demo, "_make_all", fail)
    with pytest.raises(RuntimeError, match="broken"):
        demo.build(tmp_path / "demo", **COUNTS)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    def full(tasks: list, processes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_make_all", full)
    assert "No space left" in refused(capsys, tmp_path / "demo")
    assert not list(tmp_path.iterdir())


def test_of_two_builds_at_once_the_first_stays(built, tmp_path, capsys, monkeypatch):
    out = tmp_path / "demo"

    def other_is_faster(tasks: list, processes: int) -> list[list[float]]:
        shutil.copytree(built, out)
        return [[0, 0, 0, 0, 9, 9, 5.0, 0.0, 100.0] for _ in tasks]

    monkeypatch.setattr(demo, "_make_all", other_is_faster)
    make_demo_dataset.main([str(out)])
    assert contents(out) == contents(built) and [path.name for path in tmp_path.iterdir()] == [
        "demo"
    ]
    assert "another process" in capsys.readouterr().err


def test_what_else_appears_meanwhile_is_no_finished_build(tmp_path, capsys, monkeypatch):
    out = tmp_path / "demo"

    def somebody_writes(tasks: list, processes: int) -> list[list[float]]:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        return [[0, 0, 0, 0, 9, 9, 5.0, 0.0, 100.0] for _ in tasks]

    monkeypatch.setattr(demo, "_make_all", somebody_writes)
    assert str(out) in refused(capsys, out)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers through /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_no_data_set_and_no_workers(tmp_path, tmp_path_factory, how):
    command = [sys.executable, SCRIPT, tmp_path / "demo", "--train", "2000"]
    errors = (
        tmp_path_factory.mktemp("said") / "stderr"
    )  # no pipe: workers left behind would hold it open
    with errors.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(tmp_path.rglob("*.jpg")))
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        os.kill(process.pid, how)
        process.wait(30)
    assert len(workers) >= 1 and "Traceback" not in errors.read_text()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not (tmp_path / "demo").exists()
    if how == signal.SIGTERM:
        assert process.returncode == 128 + how and not list(tmp_path.iterdir())
        return
    # The next build in this place removes what a killed one has left, and nothing else.
    (left,) = tmp_path.glob(".demo-unfinished-*")
    long_ago = time.time() - 3600
    for path in (left, *left.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    kept = [tmp_path / ".demo-unfinished-notes", tmp_path / ".demo-unfinished-0123abcd"]
    for folder in kept:
        folder.mkdir()
    os.utime(kept[0], (long_ago, long_ago))
    demo.build(tmp_path / "demo", processes=1, train=8, test=8, spaq=8)
    assert set(tmp_path.iterdir()) == {tmp_path / "demo", *kept}


def wait_until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
