import contextlib
import csv
import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from helpers import huge_header, jpeg_bytes, picture, save_random_model
from PIL import Image

from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT
from hyperiqa.model import checkpoints, factory
from hyperiqa.model.backbone import IMAGENET_MEAN, IMAGENET_STD
from hyperiqa.scoring import image_sources, maps, quality_model

SCRIPT = CHECKOUT / "predict.py"
DESCRIPTION = {
    "backbone": "resnet18",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "seed": 42,
    "dataset": "koniq-10k",
    "score_range": [0.0, 100.0],
    "higher_is_better": True,
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
    "test_crop": "center",
    "test_patch_num": 25,
    "run": "test",
}


def save_model(path, seed=0, **changes):
    return save_random_model(path, {**DESCRIPTION, **changes}, spread=30, seed=seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("run") / "best_model_srcc_0.9000_plcc_0.9000.pkl")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Six photos of different sizes in a tree, with the current folder above it."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for i, name in enumerate(
        ["a.png", "b.jpg", "c, d.jpg", "sub/e.webp", "sub/f.bmp", "sub/g.tif"]
    ):
        Image.fromarray(picture(90 + 20 * i, 150 - 10 * i, seed=i)).save(
            tmp_path / "photos" / name, quality=90
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def run(*words):
    return __main__.main(["--device", "cpu", *map(str, words)])


def read(path):
    """image -> (score or None, error) of an output file, by the standard library's readers; no image twice."""
    with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = (
            [json.loads(line) for line in file]
            if Path(path).suffix == ".jsonl"
            else list(csv.DictReader(file))
        )
    found = {
        row["image"]: (None if row["score"] in ("", None) else float(row["score"]), row["error"])
        for row in rows
    }
    assert len(found) == len(rows)
    return found


def scores(path):
    return {image: score for image, (score, _) in read(path).items()}


def plain_score(checkpoint, path, crops=None):
    """The field's procedure, step by step, one crop at a time: Pillow and torchvision's transforms."""
    state = torch.load(checkpoint, weights_only=True)
    net = factory.build(DESCRIPTION)
    net.load_state_dict(state)
    net.eval()
    image = T.Resize(72)(Image.open(path).convert("RGB"))
    cut = (
        [T.CenterCrop(64)(image)]
        if crops is None
        else [image.crop((x, y, x + 64, y + 64)) for x, y in crops]
    )
    with torch.no_grad():
        normal = T.Compose([T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        return float(np.mean([net(normal(crop)[None])["scores"].item() for crop in cut]))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_scores_are_those_of_the_plain_procedure(checkpoint, photos, form):
    assert run(checkpoint, "photos", "--output", f"out.{form}", "--batch_size", 4) == 0
    found = scores(f"out.{form}")
    assert list(found) == [
        f"photos/{name}"
        for name in ("a.png", "b.jpg", "c, d.jpg", "sub/e.webp", "sub/f.bmp", "sub/g.tif")
    ]
    model = quality_model.load(checkpoint, device="cpu")
    for image, score in found.items():
        assert score == pytest.approx(model.score(image), abs=1e-3)
        assert score == pytest.approx(
            plain_score(checkpoint, image), abs=0.02
        )  # Pillow rounds its resize otherwise
    assert max(found.values()) - min(found.values()) > 0.2


def test_scores_without_a_resize_are_exact(checkpoint, photos):
    Image.fromarray(picture(100, 72 + 8)).resize((100, 72)).save(
        "photos/exact.png"
    )  # its shorter side is the resize's
    run(checkpoint, "photos/exact.png", "--output", "out.csv")
    assert scores("out.csv")["photos/exact.png"] == pytest.approx(
        plain_score(checkpoint, "photos/exact.png"), abs=1e-3
    )


def test_flags_change_what_is_scored(checkpoint, photos):
    Image.fromarray(picture(100, 80)).resize((72, 136)).save("tall.png")
    run(checkpoint, "tall.png", "--crops", 2, "--output", "grid.csv")
    expected = plain_score(checkpoint, "tall.png", [(4, 0), (4, 72)])
    assert scores("grid.csv")["tall.png"] == pytest.approx(expected, abs=1e-3)
    assert abs(expected - plain_score(checkpoint, "tall.png")) > 0.01
    for flags, setting in (
        (["--resize", "100x80"], "resize=100x80"),
        (["--precision", "bf16"], "precision=bf16"),
        (["--exif_rotate"], "exif_rotate=yes"),
        (["--crops", 2], "crops=2"),
        ([], "crops=1"),
    ):
        output = Path(f"{setting}.csv")
        assert run(checkpoint, "tall.png", *flags, "--output", output) == 0
        assert setting in output.read_text().splitlines()[1].split(",")[3].split()
    assert scores("resize=100x80.csv") != scores("crops=1.csv")


def test_rows_go_to_standard_output(checkpoint, photos, capfd):
    assert run(checkpoint, "photos/*.jpg", "./photos/b.jpg", "--format", "jsonl") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == ["photos/b.jpg", "photos/c, d.jpg"]
    assert re.fullmatch(
        "weights=[0-9a-f]{12} resize=72 patch_size=64 crops=1 exif_rotate=no precision=fp32",
        rows[0]["made_with"],
    )
    assert run(checkpoint, "photos/b.jpg") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "image,score,error,made_with" and lines[1].startswith("photos/b.jpg,")


def on_terminal(capfd, *words):
    """What the command writes when its standard output is a terminal."""
    master, slave = os.openpty()
    with capfd.disabled():
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(slave, 1)
        try:
            run(*words)
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
    os.close(slave)
    shown = b""
    # Linux says so where all has been read.
    with contextlib.suppress(OSError):
        while data := os.read(master, 1 << 16):
            shown += data
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_gets_lines_to_read(checkpoint, photos, capfd):
    model = quality_model.load(checkpoint, device="cpu")
    score = model.score("photos/b.jpg")
    shown = on_terminal(capfd, checkpoint, "photos/b.jpg")
    assert shown == f"photos/b.jpg  {score:.1f} of 0..100, higher is better (koniq-10k)\n"
    Path("photos/bad.jpg").write_text("no image")
    shown = on_terminal(capfd, checkpoint, "photos/b.jpg", "photos/bad.jpg")
    assert shown.splitlines() == [
        "Scores on a scale of 0..100, higher is better (koniq-10k):",
        f"{score:8.1f}  photos/b.jpg",
        "       –  photos/bad.jpg  (not an image of a format that is read here)",
    ]
    # Rows where they are asked for, and into a file.
    shown = on_terminal(capfd, checkpoint, "photos/b.jpg", "--format", "csv")
    assert shown.splitlines()[0] == "image,score,error,made_with"
    assert on_terminal(capfd, checkpoint, "photos/b.jpg", "--output", "out.csv") == ""


def test_what_was_written_is_said(checkpoint, photos, capfd):
    Path("deep").mkdir()
    os.chdir("deep")
    run(checkpoint, "../photos/b.jpg", "--output", "o.csv", "--sheet", "s.html", "--map", "maps")
    said = capfd.readouterr().err
    assert "o.csv: 1 image scored\ns.html: page of 1 image\nmaps: 1 map drawn\n" in said
    (picture_of_map,) = Path("maps").iterdir()
    assert picture_of_map.name.startswith("photos_b.jpg-")


def test_unreadable_files_do_not_stop_the_rest(checkpoint, photos, capfd):
    odd = photos / "odd"
    odd.mkdir()
    (odd / "text.jpg").write_text("not an image")
    (odd / "empty.jpg").touch()
    (odd / "cut.jpg").write_bytes(jpeg_bytes()[:-500])
    (odd / "huge.bmp").write_bytes(huge_header())
    (odd / "nowhere.jpg").symlink_to("gone.jpg")
    Image.new("L", (100_000, 1)).save(odd / "strip.png")
    os.mkfifo(odd / "pipe.jpg")
    fine = {
        "1x1.png": Image.new("RGB", (1, 1)),
        "cmyk.jpg": Image.fromarray(picture()).convert("CMYK"),
        "16bit.png": Image.fromarray(np.arange(0, 65536, 8, np.uint16).reshape(64, 128)),
        "palette.gif": Image.fromarray(picture()).convert("P"),
        os.fsdecode(b"latin\xe9.png"): Image.fromarray(picture()),
        "two\nlines.png": Image.fromarray(picture()),
    }
    for name, image in fine.items():
        image.save(odd / name)
    frames = [Image.fromarray(picture(seed=i)) for i in range(3)]
    frames[0].save(odd / "moving.gif", save_all=True, append_images=frames[1:])

    assert (
        run(checkpoint, "photos", "--output", "out.jsonl", "--workers", 2, "--batch_size", 3) == 1
    )
    found = read("out.jsonl")
    reasons = {Path(image).name: error for image, (score, error) in found.items() if score is None}
    assert (
        reasons
        == {
            "text.jpg": "not an image of a format that is read here",
            "empty.jpg": "the file is empty",
            "cut.jpg": reasons["cut.jpg"],
            "huge.bmp": "absurdly large: 100000x100000 pixels",
            "nowhere.jpg": "No such file or directory",
            "strip.png": "absurdly large once resized from 100000x1 to 7200000x72 pixels",
            "pipe.jpg": "the file is empty",
        }
        or "1080000" not in reasons["strip.png"]
    )
    assert len(found) == 6 + 7 + 7 and len(reasons) == 7
    assert set(fine) | {"moving.gif"} <= {
        Path(image).name for image, (score, _) in found.items() if score
    }
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("7 of 20 images could not be scored: photos/odd/cut.jpg (")
    assert said.endswith(", …") and said.count("photos/odd/") == 5


def test_an_interrupted_output_is_gone_on_with(checkpoint, photos, capfd):
    (photos / "h.jpg").write_text("not yet an image")
    assert run(checkpoint, "photos", "--output", "whole.csv") == 1
    whole = Path("whole.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    failed = next(line for line in lines if b"h.jpg" in line)
    Path("cut.csv").write_bytes(b"".join(lines[:3]) + failed + lines[3][:-20])
    (photos / "h.jpg").write_bytes(jpeg_bytes())
    capfd.readouterr()
    assert run(checkpoint, "photos", "--output", "cut.csv") == 0
    said = capfd.readouterr().err
    assert (
        "cut.csv: 2 images have a score already; 1 failed one is tried again; the last row was cut off and is dropped\n"
        in said
    )
    assert said.endswith("cut.csv: 5 images scored\n")
    found = scores("cut.csv")
    assert (
        list(found)[:2] == list(scores("whole.csv"))[:2] and found.pop("photos/h.jpg") is not None
    )
    for image, score in scores("whole.csv").items():
        if score is not None:
            assert found.pop(image) == pytest.approx(score, abs=1e-3)
    assert not found
    before = Path("cut.csv").read_bytes()
    assert run(checkpoint, "./photos", photos / "a.png", "--output", "cut.csv") == 0
    assert Path("cut.csv").read_bytes() == before


def test_what_has_a_score_is_not_decoded_again(checkpoint, photos):
    run(checkpoint, "photos", "--output", "out.csv")
    before = Path("out.csv").read_bytes()
    (photos / "a.png").write_text("no image any more")
    assert run(checkpoint, "photos", "--output", "out.csv") == 0
    assert Path("out.csv").read_bytes() == before


def test_other_models_and_settings_are_not_mixed_in(checkpoint, photos, tmp_path):
    run(checkpoint, "photos/a.png", "--output", "out.csv")
    before = Path("out.csv").read_bytes()
    other = save_model(tmp_path / "other.pkl", seed=1)
    with pytest.raises(
        UserError,
        match=r"out.csv: its rows were made with weights [0-9a-f]{12}; this command has weights [0-9a-f]{12}; scores of",
    ):
        run(other, "photos", "--output", "out.csv")
    with pytest.raises(
        UserError,
        match="its rows were made with resize 72, crops 1; this command has resize none, crops 4;",
    ):
        run(checkpoint, "photos", "--resize", "none", "--crops", 4, "--output", "out.csv")
    assert Path("out.csv").read_bytes() == before
    # The same weights in another file, another format, another place: the same model.
    state, description = checkpoints.load_model(checkpoint)
    checkpoints.save_safetensors(tmp_path / "moved.safetensors", state, description)
    assert run(tmp_path / "moved.safetensors", "photos", "--output", "out.csv") == 0
    assert len(read("out.csv")) == 6


def test_a_run_folder_stands_for_its_best_model(checkpoint, photos):
    run(checkpoint, "photos/a.png", "--output", "file.csv")
    run(checkpoint.parent, "photos/a.png", "--output", "folder.csv")
    assert Path("file.csv").read_text() == Path("folder.csv").read_text()


def test_what_a_plain_state_dict_is_taken_for_is_said(photos, tmp_path, capfd):
    state = torch.load(save_model(tmp_path / "a.pkl", patch_size=224), weights_only=True)
    torch.save(dict(state), tmp_path / "plain.pkl")
    assert run(tmp_path / "plain.pkl", "photos/a.png") == 0
    said = capfd.readouterr().err
    assert (
        f"{tmp_path / 'plain.pkl'} has no description; assumed: resnet18, fusion none, patch 224, resize 512x384, "
        "crops 1, scores of 0..100, higher is better (koniq-10k)\n"
    ) in said


def test_the_sheet_shows_earlier_runs_too(checkpoint, photos):
    run(checkpoint, "photos/sub", "--output", "out.csv")
    (photos / "bad<b>.jpg").touch()
    assert run(checkpoint, "photos", "--output", "out.csv", "--sheet", "sheet.html") == 1
    page = Path("sheet.html").read_text()
    order = sorted(scores("out.csv").items(), key=lambda item: -(item[1] or -1e9))[:6]
    shown = json.loads(re.search(r'id="page">(.*?)</script>', page, re.S)[1])
    own = shown["sets"]["scored"]
    assert dict(zip(own["names"], own["fields"]["score"])) == pytest.approx(
        {name.removeprefix("photos/"): score for name, score in order}, abs=1e-5
    )
    assert shown["sections"][1]["blocks"][0]["lines"] == ["photos/bad<b>.jpg (the file is empty)"]
    assert "<title>Scores by best_model_srcc_0.9000_plcc_0.9000.pkl</title>" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: CHECKPOINT, IMAGE|FOLDER|GLOB|SHARD|LIST|-"),
        (["CK", "a.jpg", "--crop", "3"], "unknown flag --crop 3 (did you mean --crops?)"),
        (["CK", "a.jpg"], "a.jpg: no such file or folder"),
        (["CK", "p", "*.gif"], "p: no images in this folder; *.gif: no images match this pattern"),
        (
            ["nosuch.pkl", "a.jpg"],
            "nosuch.pkl: no such file or folder; expected a model file, a run's folder, hf://USER/NAME or a public model (koniq, koniq-authors)",
        ),
        (
            [
                "CK",
                "-",
                "--crops",
                "0",
                "--workers",
                "-1",
                "--batch_size",
                "0",
                "--resize",
                "0",
                "--device",
                "gpu",
            ],
            "--crops 0: expected a whole number from 1 to 10000; --resize 0: expected S (shorter side), maxS (at most S), HxW (height x width) or none; "
            "--batch_size 0: expected a whole number of at least 1; --device gpu: expected auto, cpu, cuda, cuda:N or mps; "
            "--workers -1: expected a whole number from 1 to 256",
        ),
        (
            ["CK", "-", "--sheet", "s.jpg", "--output", "no/o.csv"],
            "--output no/o.csv: no folder no; --sheet s.jpg: expected a name that ends in .html",
        ),
        (["CK", "-", "--sheet", "s.PNG"], "--sheet s.PNG: expected a name that ends in .html"),
        (
            ["CK", "-", "--sheet", "x.html", "--output", "x.html"],
            "--output and --sheet: the same file x.html",
        ),
        (
            ["CK", "-", "--output", "p"],
            "--output p: a folder; expected a file, or only shards (.tar) and lists (.csv, .parquet) as sources",
        ),
        (
            ["CK", "-", "--output", "s.xlsx"],
            "--output s.xlsx: rows are CSV or JSON lines; expected a name that ends in .csv or .jsonl; "
            "Parquet is written for shards and lists, with --format parquet and a folder as --output",
        ),
    ],
)
def test_mistakes_are_found_before_torch_is_loaded(checkpoint, tmp_path, words, message):
    (tmp_path / "p").mkdir()
    words = [str(checkpoint) if word == "CK" else word for word in words]
    # The script must not get as far as torch: an import of it would say so.
    (tmp_path / "torch.py").write_text("print('torch was imported')")
    done = subprocess.run(
        [sys.executable, SCRIPT, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    said = done.stderr.strip()
    assert said == f"error: {message}"
    assert (done.returncode, done.stdout) == (2, "")


def start(checkpoint, *words, **pipes):
    command = [sys.executable, str(SCRIPT), str(checkpoint), "--device", "cpu", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **pipes
    )


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_stays_open_is_scored_as_it_comes_until_a_signal(checkpoint, photos, kind):
    process = start(checkpoint, "-", "photos/sub", stdin=subprocess.PIPE)
    try:
        found = []
        process.stdin.write("photos/a.png\nphotos/nosuch.jpg\nphotos/a.png\n")
        process.stdin.flush()
        assert process.stdout.readline() == "image,score,error,made_with\n"
        found = [process.stdout.readline().split(",") for _ in range(5)]
        process.stdin.write("photos/b.jpg\n")
        process.stdin.flush()
        found.append(
            process.stdout.readline().split(",")
        )  # nothing was closed, and no batch is full
        process.send_signal(kind)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert [row[0] for row in found] == [
        f"photos/{name}"
        for name in ("sub/e.webp", "sub/f.bmp", "sub/g.tif", "a.png", "nosuch.jpg", "b.jpg")
    ]
    assert [row[2] for row in found] == ["", "", "", "", "No such file or directory", ""]
    assert process.returncode == 128 + kind and out == ""
    assert err.endswith("interrupted after 6 images\n") and "Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(checkpoint, photos):
    process = start(checkpoint, "-", stdin=subprocess.PIPE)
    try:
        process.stdin.write("photos/a.png\n")
        process.stdin.flush()
        assert process.stdout.readline() and process.stdout.readline().startswith("photos/a.png,")
        process.stdout.close()
        process.stdin.write("photos/b.jpg\n")
        process.stdin.close()
        assert process.wait(60) == 0
        assert "rror" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
def test_a_full_disk_is_one_line(checkpoint, photos):
    with pytest.raises(UserError, match="^/dev/full: cannot be written: No space left on device$"):
        run(checkpoint, "photos", "--output", "/dev/full", "--format", "jsonl")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(SCRIPT), str(checkpoint), "photos", "--device", "cpu"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    said = done.stderr.splitlines()[-1]
    assert (
        done.returncode == 2
        and said == "error: standard output: cannot be written: No space left on device"
    )


def test_images_are_read_ahead_no_further_than_a_batch_needs(checkpoint, photos):
    """However many crops an image has: the crops that wait are what fills the memory."""
    named = []

    def endless():
        while True:
            named.append("photos/a.png")
            yield "photos/a.png"

    for crops, most in ((1, 8 + 2 + 8), (16, 1 + 2 + 1)):
        named.clear()
        model = quality_model.load(checkpoint, device="cpu", resize="200", crops=crops)
        next(model.score_all(endless(), batch_size=8, workers=2))
        assert len(named) <= most


def test_a_long_stretch_of_unreadable_files_is_reported_as_it_goes(checkpoint, photos):
    model = quality_model.load(checkpoint, device="cpu")
    named = []
    results = model.score_all(
        (named.append(i) or f"no{i}.jpg" for i in range(1000)), batch_size=4, workers=1
    )
    assert next(results).problem == "No such file or directory" and len(named) < 20
    assert sum(result.score is None for result in results) == 999


def test_a_capture_of_standard_output_gets_the_rows(checkpoint, photos):
    with contextlib.redirect_stdout(io.StringIO()) as captured:
        assert run(checkpoint, "photos/a.png") == 0
    (row,) = csv.DictReader(captured.getvalue().splitlines())
    assert row["image"] == "photos/a.png" and float(row["score"]) == pytest.approx(
        plain_score(checkpoint, "photos/a.png"), abs=0.02
    )


def test_pictures_that_are_passed_over_are_named(checkpoint, photos, capfd):
    for name in ("IMG_1.HEIC", "sub/IMG_2.dng", ".hidden.heic", "notes.txt"):
        (photos / name).write_bytes(b"x")
    assert run(checkpoint, "photos", "--output", "out.csv") == 0
    said = "passed over 2 pictures of formats that are not read here (.dng, .heic): photos/IMG_1.HEIC, photos/sub/IMG_2.dng"
    assert said in capfd.readouterr().err and len(read("out.csv")) == 6
    (photos / "only").mkdir()
    (photos / "only" / "x.cr2").touch()
    with pytest.raises(
        UserError,
        match=r"no images in this folder, passed over 1 picture .*\(.cr2\): photos/only/x.cr2",
    ):
        run(checkpoint, "photos/only")


def test_several_processes_are_refused(checkpoint, photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, which torchrun sets; expected 1"):
        run(checkpoint, "photos")


def maps_in(folder):
    """readable name -> map, of a folder that must be flat and hold pictures alone."""
    for path in folder.iterdir():
        assert re.fullmatch(r"[^.-].*-[0-9a-f]{16}\.png", path.name) and path.stat().st_size > 500
    return {path.name.rpartition("-")[0]: path for path in folder.iterdir()}


def test_every_image_has_a_map_and_no_map_is_scored(checkpoint, photos, monkeypatch):
    Image.fromarray(picture()).save(photos / ("山" * 81 + ".png"))
    Image.fromarray(picture()).save(photos / "c_ d.jpg")  # as a simple replacement calls `c, d.jpg`
    # The folder of the maps lies among the images, by itself or as the very same.
    for folder in ("photos/maps", "photos"):
        assert run(checkpoint, "photos", "--map", folder, "--output", f"{folder[-4:]}.csv") == 0
        assert len(scores(f"{folder[-4:]}.csv")) == 8
    drawn = [*photos.glob("*-????????????????.png"), *photos.glob("maps/*")]
    assert len(drawn) == 16 and len(maps_in(photos / "maps")) == 8
    before = {path: path.stat().st_mtime_ns for path in drawn}
    assert run(checkpoint, "photos", "photos/**", "--output", "again.csv") == 0
    assert len(scores("again.csv")) == 8
    # What is there is not drawn again; neither is it an image that a pipe may name.
    assert run(checkpoint, "photos", "--map", "photos/maps", "--output", "maps.csv") == 0
    assert {path: path.stat().st_mtime_ns for path in drawn} == before
    Path("list.txt").write_text("\n".join(map(str, [*drawn, photos / "a.png"])))
    with Path("list.txt").open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert run(checkpoint, "-", "--output", "piped.csv") == 0
    assert list(scores("piped.csv")) == [str(photos / "a.png")]


def test_maps_are_added_to_a_finished_output(checkpoint, photos, tmp_path, capfd):
    assert run(checkpoint, "photos", "--output", "out.csv") == 0
    before = Path("out.csv").read_bytes()
    assert run(checkpoint, "photos", "--output", "out.csv", "--map", "maps") == 0
    drawn = maps_in(Path("maps"))
    assert Path("out.csv").read_bytes() == before and len(drawn) == 6
    # A missing one is drawn, and so is another model's, which goes by the same name.
    times = {name: path.stat().st_mtime_ns for name, path in drawn.items()}
    drawn["photos_a.png"].unlink()
    other = save_model(tmp_path / "other.pkl", seed=1)
    assert run(other, "photos/b.jpg", "--output", "other.csv", "--map", "maps") == 0
    assert run(checkpoint, "photos", "--output", "out.csv", "--map", "maps") == 0
    changed = {n for n, p in maps_in(Path("maps")).items() if p.stat().st_mtime_ns != times[n]}
    assert Path("out.csv").read_bytes() == before and changed == {
        "photos_a.png",
        "photos_b.jpg",
    }
    assert capfd.readouterr().err.endswith("out.csv: 0 images scored\nmaps: 2 maps drawn\n")


def test_a_map_that_fails_is_the_problem_of_its_row(checkpoint, photos, monkeypatch, capfd):
    """A strip whose score is fine, and a place that cannot be written."""
    Image.effect_noise((9000, 20), 60).convert("RGB").save(photos / "a_strip.png")
    monkeypatch.setattr(maps, "MAX_PIXELS", 2_000_000)
    monkeypatch.setattr(image_sources, "map_path", blocked := _one_that_is_blocked())
    assert run(checkpoint, "photos", "--output", "out.csv", "--map", "maps") == 1
    found = read("out.csv")
    assert len(found) == 7 and all(score is not None for score, _ in found.values())
    problems = {image: error for image, (_, error) in found.items() if error}
    assert problems.keys() == {"photos/a_strip.png", "photos/b.jpg"}
    strip = problems["photos/a_strip.png"]
    assert strip == "no map: 32400x72 pixels; expected at most 2,000,000 in a map"
    assert re.fullmatch(
        "no map: maps/nosuch.*/x.png: cannot be written: .*", problems["photos/b.jpg"]
    )
    said = capfd.readouterr().err
    assert (
        "out.csv: 7 images scored\nmaps: 5 maps drawn\n2 images have no map: photos/a_strip.png (no map: 32"
        in said
    )
    # The next run tries both again.
    monkeypatch.setattr(image_sources, "map_path", blocked.__wrapped__)
    assert run(checkpoint, "photos", "--output", "out.csv", "--map", "maps") == 1
    found = read("out.csv")
    assert len(found) == 7 and [bool(error) for _, error in found.values()].count(True) == 1


def _one_that_is_blocked():
    original = image_sources.map_path

    @functools.wraps(original)
    def map_path(folder, image):
        if image.endswith("b.jpg"):
            return folder / ("nosuch" * 50) / "x.png"
        return original(folder, image)

    return map_path
