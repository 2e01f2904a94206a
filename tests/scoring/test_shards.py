import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers import jpeg_bytes, picture, save_random_model
from PIL import Image
from test_predict import DESCRIPTION

from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT
from hyperiqa.scoring import image_sources, quality_model

SHARDS = "photos-{0..2}.tar"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("run") / "best_model.pkl", DESCRIPTION, 30)


def write_shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def photo(seed):
    file = io.BytesIO()
    Image.fromarray(picture(90, 80, seed)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Name -> bytes of twelve photographs in three shards; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    images = {}
    for i in range(3):
        members = [(f"{4 * i + k}.jpg", photo(4 * i + k)) for k in range(4)]
        write_shard(f"photos-{i}.tar", [*members, ("0.json", b"{}"), ("0.cls", b"1")])
        images |= {f"photos-{i}.tar/{name}": data for name, data in members}
    return images


def run(*words):
    return __main__.main(["--device", "cpu", *map(str, words)])


def listed(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def rows_of(path):
    """The rows of a file, by other readers than the program's."""
    if path.endswith(".parquet"):
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    with Path(path).open(newline="", encoding="utf-8") as file:
        if path.endswith(".jsonl"):
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file))


def scores_of(*paths):
    rows = [row for path in paths for row in rows_of(path)]
    scores = {row["image"]: float(row["score"]) for row in rows}
    assert len(scores) == len(rows)
    return scores


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_every_shard_gets_a_file_of_its_rows(checkpoint, photos, form, capfd):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    assert run(checkpoint, SHARDS, "--output", "rows", "--format", form) == 0
    assert listed("rows") == [f"photos-{i}.{form}" for i in range(3)]
    model = quality_model.load(checkpoint, device="cpu")
    expected = {name: model.score(data) for name, data in photos.items()}
    scores = scores_of(*(f"rows/photos-{i}.{form}" for i in range(3)))
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-3)
    assert {row["error"] for row in rows_of(f"rows/photos-0.{form}")} <= {None, ""}
    # A finished shard is not touched again, whatever became of it, and others are added.
    before = Path(f"rows/photos-0.{form}").stat()
    Path(f"rows/photos-1.{form}").unlink()
    write_shard("photos-0.tar", [])
    assert run(checkpoint, SHARDS, "--output", "rows", "--format", form) == 0
    assert Path(f"rows/photos-0.{form}").stat() == before
    assert scores_of(*(f"rows/photos-{i}.{form}" for i in range(3))) == scores
    assert "rows: 2 of 3 sources finished before\n" in capfd.readouterr().err


def test_rows_of_other_models_or_of_nobody_are_refused(checkpoint, photos, tmp_path):
    run(checkpoint, "photos-0.tar", "--output", "rows")
    other = save_random_model(tmp_path / "other.pkl", DESCRIPTION, 30, seed=1)
    with pytest.raises(UserError, match="photos-0.csv: its rows were made with weights .*; this"):
        run(other, SHARDS, "--output", "rows")
    with pytest.raises(UserError, match="photos-0.csv: its rows were made with crops 1; this"):
        run(checkpoint, SHARDS, "--crops", "2", "--output", "rows")
    assert listed("rows") == ["photos-0.csv"]
    (tmp_path / "rows" / "photos-1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="photos-1.csv: row 1 is not csv of predict.py's"):
        run(checkpoint, SHARDS, "--output", "rows")


def test_shards_of_one_name_are_refused(checkpoint, photos, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy("photos-1.tar", "more")
    shutil.copy("photos-2.tar", "more/photos-2.tar.gz")
    with pytest.raises(UserError, match="whose rows belong into rows/photos-1.csv, rows/photos-2"):
        run(checkpoint, SHARDS, "more/*.tar", "more/*.tar.gz", "--output", "rows")
    # The same shard, named twice, is one.
    assert run(checkpoint, SHARDS, "./photos-0.tar", "--output", "rows") == 0


def test_what_is_wrong_with_a_shard_is_in_its_rows(checkpoint, photos, tmp_path, capfd):
    good = ("a.jpg", jpeg_bytes())
    write_shard("names.tar", [good, ("text.png", b"text"), ("none.jpg", b""), good])
    write_shard("empty.tar", [("a.txt", b"text")])
    (tmp_path / "nothing.tar").touch()
    data = (tmp_path / "photos-2.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:9000])
    names = ["names", "empty", "nothing", "cut"]
    sources = [f"{name}.tar" for name in names]
    assert run(checkpoint, *sources, "--output", "rows") == 1
    problems = {row["image"]: row["error"] for name in names for row in rows_of(f"rows/{name}.csv")}
    cut = problems.pop("cut.tar")
    assert cut.startswith("cannot be read on after ") and cut.endswith("unexpected end of data")
    assert {name: problems[name] for name in problems if not name.startswith("cut.tar/")} == {
        "names.tar/a.jpg": "",
        "names.tar/text.png": "not an image of a format that is read here",
        "names.tar/none.jpg": "the file is empty",
        f"names.tar/a.jpg@{member_offset('names.tar', 3)}": "an earlier image in this shard has "
        "the same name",
        "empty.tar": "no images in it",
        "nothing.tar": "cannot be read on after 0 images: empty file",
    }
    read = [name for name in problems if name.startswith("cut.tar/")]
    assert read == [f"cut.tar/{8 + i}.jpg" for i in range(len(read))] and len(read) in (1, 2, 3)
    assert "rows/names.csv: 1 scored, 3 failed\n" in capfd.readouterr().err
    # All of them are finished, and what failed in them is said once more.
    assert run(checkpoint, *sources, "--output", "rows") == 1
    said = capfd.readouterr().err
    assert "rows: 4 of 4 sources finished before\n" in said
    assert "could not be scored: " in said and "names.tar/none.jpg (the file is empty)" in said


def test_a_member_of_absurd_size_ends_the_shard(tmp_path):
    """The header alone names the size: to read or to skip as many bytes would never end."""
    header = tarfile.TarInfo("huge.jpg")
    header.size = 1 << 50
    # Such a size is written in binary.
    (tmp_path / "huge.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + jpeg_bytes())
    (end,) = image_sources.images_in(str(tmp_path / "huge.tar"), "image", [])
    assert end.problem.endswith("after 0 images: huge.jpg claims to have over 1 GiB")


def member_offset(path, number):
    with tarfile.open(path) as archive:
        return archive.getmembers()[number].offset


@pytest.mark.slow
def test_a_killed_command_leaves_no_part_of_a_shard(checkpoint, photos, tmp_path):
    data = (tmp_path / "photos-1.tar").read_bytes()
    (tmp_path / "photos-1.tar").unlink()
    os.mkfifo("photos-1.tar")
    command = [sys.executable, CHECKOUT / "predict.py", checkpoint, SHARDS, "--output", "rows"]
    process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE)
    # The shard comes to a halt within its images. Opened for both ways, a pipe waits for nobody.
    with (tmp_path / "photos-1.tar").open("r+b", buffering=0) as pipe:
        pipe.write(data[:9000])
        deadline = time.monotonic() + 60
        while not list((tmp_path / "rows").glob(".photos-1.csv.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    assert [name for name in listed("rows") if name[0] != "."] == ["photos-0.csv"]
    (tmp_path / "photos-1.tar").unlink()
    (tmp_path / "photos-1.tar").write_bytes(data)
    assert run(checkpoint, SHARDS, "--output", "rows") == 0
    assert list(scores_of(*(f"rows/photos-{i}.csv" for i in range(3)))) == list(photos)


def test_a_full_disk_is_one_line(checkpoint, photos):
    write_shard("many.tar", [(f"{'long' * 30}{i}.jpg", b"") for i in range(40)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(UserError, match="^rows/many.csv: cannot be written: File too large$"):
            run(checkpoint, "many.tar", "--output", "rows")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listed("rows") == []


def test_shares_make_the_whole(checkpoint, photos, capfd):
    run(checkpoint, SHARDS, "--output", "whole")
    for i in range(4):
        assert run(checkpoint, SHARDS, "--output", "rows", "--share", f"{i}/4") == 0
        said = capfd.readouterr().err
        assert f"--share {i}/4: {int(i < 3)} of 3 sources\n" in said
    for i in range(3):
        assert rows_of(f"rows/photos-{i}.csv") == rows_of(f"whole/photos-{i}.csv")


def test_shards_and_lists_go_into_one_file_beside_photographs(checkpoint, photos, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.jpg").write_bytes(jpeg_bytes())
    (tmp_path / "more" / "list.csv").write_text("image\nx.jpg\n../y.jpg\n")
    sources = ["more/x.jpg", "photos-0.tar", "more/list.csv"]
    assert run(checkpoint, *sources, "--output", "all.csv") == 1
    rows = {row["image"]: row["error"] for row in rows_of("all.csv")}
    assert list(rows) == ["more/x.jpg", *list(photos)[:4], "more/../y.jpg"]
    assert [name for name, error in rows.items() if error] == ["more/../y.jpg"]
    # What failed is tried again, what has a score is not.
    (tmp_path / "y.jpg").write_bytes(jpeg_bytes())
    os.truncate("photos-0.tar", 0)
    assert run(checkpoint, *sources, "--output", "all.csv") == 1
    rows = {row["image"]: row["error"] for row in rows_of("all.csv")}
    assert [name for name, error in rows.items() if error] == ["photos-0.tar"]
    assert len(rows) == 7


def test_a_parquet_list_of_bytes_gets_its_rows(checkpoint, photos):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"jpg": list(photos.values())}), "list.parquet")
    with pytest.raises(UserError, match="list.parquet: no column image; found jpg; --image_column"):
        run(checkpoint, "list.parquet", "--output", "rows")
    assert run(checkpoint, "list.parquet", "--output", "rows", "--image_column", "jpg") == 0
    model = quality_model.load(checkpoint, device="cpu")
    expected = {f"list.parquet/{i}": model.score(data) for i, data in enumerate(photos.values())}
    assert scores_of("rows/list.csv") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a.tar", "--share", "3/3"],
            "--share 3/3: expected i/n with i from 0 to n-1, such as 0/8",
        ),
        (["-", "--share", "0/3"], "contradictory flags: --share and - for standard input"),
        (
            ["a.tar", "--sheet", "s.html"],
            "--sheet: expected images, folders or patterns, found a.tar",
        ),
        (["a.tar", "--engine_workers", "2"], "--engine_workers needs --engine"),
        (
            ["a.tar", "a.jpg", "--output", "p"],
            "--output p: a folder; expected a file, or only shards",
        ),
        (["a.tar", "--output", "p/q/rows"], "--output p/q/rows: no folder p/q"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    with pytest.raises(UserError) as raised:
        __main__.parse([str(checkpoint), *words])
    assert str(raised.value).startswith(message)


def test_formats_and_engines_need_a_folder_of_shards(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for words in (["a.jpg", "--output", "x"], ["a.tar", "--output", "x.csv"], ["a.tar"]):
        with pytest.raises(UserError, match="^--format parquet: expected shards .* as --output$"):
            __main__.parse([str(checkpoint), *words, "--format", "parquet"])
