import csv
import json
import os
import pty
import subprocess
import sys

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT
from hyperiqa.scoring import image_sources, score_files
from hyperiqa.scoring.score_files import ScoreFile, read_rows, take_up

ODD = [
    "a,b.jpg",
    'say "x".png',
    "two\nlines.jpg",
    "return\rhere.jpg",
    os.fsdecode(b"latin\xe9.jpg"),
    "täst 山.jpg",
    " .jpg",
]
MADE = "weights=abc resize=384 crops=1"


def write(path, form="csv", images=ODD, failed=("bad.jpg",), made=MADE):
    file = ScoreFile(path, form)
    for i, image in enumerate(images):
        file.add(image, i - 1.5, None, made)
    for image in failed:
        file.add(image, None, 'not "an image", it seems', made)
    return path


def rows(path, form):
    return [(row["image"], row["score"]) for _, row in read_rows(path, form) if row]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_come_back_whatever_the_names(tmp_path, form):
    path = write(tmp_path / "out", form)
    expected = [(image, i - 1.5) for i, image in enumerate(ODD)] + [("bad.jpg", None)]
    assert rows(path, form) == expected
    # And by the standard library's own reading of such files.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        plain = list(csv.DictReader(file)) if form == "csv" else [json.loads(line) for line in file]
    assert [row["image"] for row in plain] == [image for image, _ in expected]
    assert (
        list(plain[0]) == ["image", "score", "error", "made_with"] and plain[0]["made_with"] == MADE
    )
    assert [row["score"] for row in plain[-2:]] == (["4.5", ""] if form == "csv" else [4.5, None])
    assert plain[-1]["error"] == 'not "an image", it seems'
    if form == "jsonl":
        path.read_bytes().decode()  # strict: JSON is UTF-8


def test_appending_writes_no_second_header(tmp_path):
    write(tmp_path / "out.csv", images=["a"], failed=())
    write(tmp_path / "out.csv", images=["b"], failed=())
    assert (
        tmp_path / "out.csv"
    ).read_text() == f"image,score,error,made_with\na,-1.5,,{MADE}\nb,-1.5,,{MADE}\n"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_cut_anywhere_is_taken_up_with_its_whole_rows(tmp_path, form):
    whole = write(tmp_path / "out", form, ODD[:3], ()).read_bytes()
    ends = [len(whole[:0])]
    for record, _ in read_rows(tmp_path / "out", form):
        ends.append(ends[-1] + len(record))
    for cut in range(1, len(whole)):
        (tmp_path / "out").write_bytes(whole[:cut])
        done, note = take_up(tmp_path / "out", form, MADE, lambda image: True)
        last = max(end for end in ends if end <= cut)
        assert (tmp_path / "out").read_bytes() == whole[:last]
        assert (
            list(done.values())
            == [-1.5, -0.5, 0.5][: ends.index(last) - (form == "csv" and last > 0)]
        )
        assert note.endswith("the last row was cut off and is dropped") == (cut not in ends)


def test_failed_rows_go_where_they_are_tried_again(tmp_path):
    path = write(tmp_path / "out.csv", images=["a", "b"], failed=["x", "y"])
    (tmp_path / "link.csv").symlink_to(path)
    done, note = take_up(tmp_path / "link.csv", "csv", MADE, lambda image: image == "x")
    assert done == {"a": -1.5, "b": -0.5}
    assert not [row for _, row in read_rows(path, "csv") if row and row["image"] == "x"]
    assert (
        note
        == f"{tmp_path / 'link.csv'}: 2 images have a score already; 1 failed one is tried again"
    )
    assert rows(path, "csv") == [("a", -1.5), ("b", -0.5), ("y", None)]
    assert (tmp_path / "link.csv").is_symlink()
    before = path.stat()
    take_up(path, "csv", MADE, lambda image: False)
    assert path.stat().st_ino == before.st_ino  # nothing to drop: untouched


def test_rows_of_other_models_or_settings_are_not_mixed(tmp_path):
    path = write(tmp_path / "out.csv", images=["a"])
    with pytest.raises(UserError) as caught:
        take_up(path, "csv", "weights=abc resize=none crops=9 precision=fp32", lambda image: True)
    assert str(caught.value) == (
        f"--output {path}: its rows were made with resize 384, crops 1, precision unknown; this command has "
        "resize none, crops 9, precision fp32; scores of different models or settings are not mixed: "
        "give another --output, or the checkpoint and flags of before"
    )
    assert rows(path, "csv") == [("a", -1.5), ("bad.jpg", None)]


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"hello", "csv", "exists, and is no csv file of predict.py's"),
        (b"hello", "jsonl", "exists, and is no jsonl file of predict.py's"),
        (
            b"image,mos\na.jpg,1\n",
            "csv",
            "row 1 is not csv of predict.py's, with image,score,error,made_with",
        ),
        (b"image,score,error,made_with\na,1\n", "csv", "row 2 is not csv"),
        (b"image,score,error,made_with\na,much,,m\n", "csv", "row 2 is not csv"),
        (b'image,score,error,made_with\n"' + b"x\n" * 100_000, "csv", "row 2 is not csv"),
        (b'{"image": "a"}\n', "jsonl", "row 1 is not jsonl"),
        (b"[1]\n", "jsonl", "row 1 is not jsonl"),
        (b"image,score,error,made_with\n", "jsonl", "row 1 is not jsonl"),
        (bytes(300_000), "csv", "row 1 is not csv"),
    ],
)
def test_files_of_another_kind_are_left_alone(tmp_path, content, form, message):
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(UserError) as caught:
        take_up(tmp_path / "out", form, MADE, lambda image: True)
    assert str(caught.value).startswith(f"--output {tmp_path / 'out'}: {message}")
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")  # noqa: PTH110
def test_a_full_disk_is_named():
    with pytest.raises(UserError, match="^/dev/full: cannot be written: No space left on device$"):
        ScoreFile(score_files.Path("/dev/full"), "csv")
    file = ScoreFile(score_files.Path("/dev/full"), "jsonl")
    with pytest.raises(UserError, match="^/dev/full: cannot be written: No space left on device$"):
        file.add("a", 1.0, None, MADE)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("letter", ['"', "\n", "\x01", "\udce9", "a", ",", "\\"])
def test_the_longest_names_and_reasons_are_read_again(tmp_path, form, letter):
    image = letter * image_sources.LONGEST
    write(tmp_path / "out", form, [image], [], MADE)
    ScoreFile(tmp_path / "out", form).add(image + "2", None, letter * 100_000, MADE)
    done, _ = take_up(tmp_path / "out", form, MADE, lambda image: False)
    assert done == {image: -1.5} and rows(tmp_path / "out", form)[1] == (image + "2", None)


def test_a_row_with_a_score_and_an_error_is_tried_again(tmp_path):
    file = ScoreFile(tmp_path / "out.csv", "csv")
    file.add("mapped.jpg", 1.0, None, MADE)
    file.add("unmapped.jpg", 2.0, "no map: too large", MADE)
    done, _ = take_up(tmp_path / "out.csv", "csv", MADE, lambda image: False)
    assert done == {"mapped.jpg": 1.0, "unmapped.jpg": 2.0}
    done, note = take_up(tmp_path / "out.csv", "csv", MADE, lambda image: True)
    assert done == {"mapped.jpg": 1.0} and "; 1 failed " in note


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_steer_no_terminal_and_keep_their_bytes_in_a_pipe(form):
    name = "\x1b[2J\x7f\u202e.jpg"
    code = (
        f"from hyperiqa.scoring.score_files import ScoreFile\nScoreFile(None, {form!r})"
        f".add({name!r}, 1.0, None, 'm')"
    )
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=True).stdout.decode()
    own, terminal = pty.openpty()
    subprocess.run(command, stdout=terminal, cwd=CHECKOUT, check=True)
    os.close(terminal)
    shown = os.read(own, 10_000).decode()
    os.close(own)
    assert not set("\x1b\x7f\u202e") & set(shown) and ".jpg" in shown
    if form == "csv":
        assert f"{name},1.0,,m" in piped
    else:
        assert json.loads(piped)["image"] == name


def test_only_the_demo_is_called_synthetic():
    """A user's own set may have the word in its name."""
    scale = {"score_range": [0, 100], "higher_is_better": True}
    texts = [score_files.scale_text(scale | {"dataset": name}) for name in ("demo", "csv:my-demo")]
    assert texts == [
        "0..100, higher is better (demo, synthetic)",
        "0..100, higher is better (csv:my-demo)",
    ]
