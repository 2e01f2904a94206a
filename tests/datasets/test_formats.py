import sys
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
import scipy.io
from helpers import cells, write_book

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.formats import (
    aligned,
    cell_text,
    number,
    read_json_list,
    read_json_scores,
    read_lines,
    read_mat,
    read_sheet,
    read_table,
    under_header,
)


def test_mat_arrays_of_either_shape(tmp_path):
    path = tmp_path / "a.mat"
    scores = np.array([[1.5, 2.0, np.nan]])
    scipy.io.savemat(
        path, {"names": cells(["a.bmp", " b.bmp", ""]), "scores": scores, "flags": scores.T > 1.9}
    )
    rows = read_mat(path, "names", "scores", "flags")
    assert [row[0] for row in rows] == ["a.bmp", "b.bmp", ""]
    assert [row[1] for row in rows[:2]] == [1.5, 2.0] and np.isnan(rows[2][1])
    assert [bool(row[2]) for row in rows] == [False, True, False]


def test_what_is_wrong_with_a_mat_file_is_said(tmp_path):
    path = tmp_path / "a.mat"
    with pytest.raises(UserError, match=r"a.mat: not a readable MAT file: No such file"):
        read_mat(path, "x")
    scipy.io.savemat(path, {"x": [1, 2], "y": [1, 2, 3]})
    with pytest.raises(UserError, match=r"a.mat: no variable z; expected x, z"):
        read_mat(path, "x", "z")
    with pytest.raises(UserError, match=r"a.mat: these must be of one length: x 2, y 3"):
        read_mat(path, "x", "y")
    whole = path.read_bytes()
    version_7_3 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)
    for damaged in (whole[:150], b"no MAT file at all\n" * 20, b"", version_7_3):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.mat: not a readable MAT file: ") as raised:
            read_mat(path, "x")
        assert "\n" not in str(raised.value)


def test_columns_of_different_length():
    assert aligned(Path("x"), {"a": [1, 2], "b": "pq"}) == [(1, "p"), (2, "q")]
    with pytest.raises(UserError, match="x: these must be of one length: a 1, b 2"):
        aligned(Path("x"), {"a": [1], "b": [1, 2]})


def test_a_sheet_and_its_header_wherever_it_lies(tmp_path):
    rows = [
        ["Results"],
        [],
        [None, None, "Image ", "x", "MOS"],
        [None, None, 1600, "-", 0.5],
        [],
        ["note", 1],
    ]
    path = write_book(tmp_path / "a.xlsx", first=[["a"]], second=rows)
    found = read_sheet(path, "set", "second")
    assert under_header(path, found, ("mos", "image")) == [(0.5, 1600)]
    assert read_sheet(path, "set") == [("a",)]
    assert [cell_text(value) for value in (1600, 1600.0, " elk ", None, 1.5)] == [
        "1600",
        "1600",
        "elk",
        "",
        "1.5",
    ]
    assert number("3.5") == 3.5 and np.isnan(number("good")) and np.isnan(number(None))


def test_a_sheet_that_states_a_wrong_size_is_read_whole(tmp_path):
    path = write_book(tmp_path / "a.xlsx", only=[["name", "mos"], ["a", 1], ["b", 2]])
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    assert b'<dimension ref="A1:B3"' in parts[sheet]
    parts[sheet] = parts[sheet].replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1:A2"')
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)
    assert read_sheet(path, "set") == [("name", "mos"), ("a", 1), ("b", 2)]


def test_what_is_wrong_with_a_workbook_is_said(tmp_path):
    path = tmp_path / "a.xlsx"
    with pytest.raises(UserError, match="a.xlsx: not a readable workbook: No such file"):
        read_sheet(path, "set")
    write_book(path, first=[["name", "grade"]], second=[])
    with pytest.raises(UserError, match="a.xlsx: no sheet third; found first, second"):
        read_sheet(path, "set", "third")
    with pytest.raises(
        UserError,
        match="a.xlsx: no row with the columns name, mos; its first row holds name, grade",
    ):
        under_header(path, read_sheet(path, "set"), ("name", "mos"))
    with pytest.raises(UserError, match="its first row holds nothing"):
        under_header(path, read_sheet(path, "set", "second"), ("name", "mos"))
    whole = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "an archive, but no workbook")
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        b"<html>",
        (tmp_path / "other.zip").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.xlsx: not a readable workbook: ") as raised:
            read_sheet(path, "set")
        assert "\n" not in str(raised.value)


def test_a_workbook_without_openpyxl_says_what_to_install(tmp_path, monkeypatch):
    path = write_book(tmp_path / "a.xlsx", first=[["name"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(
        UserError, match=r"^bid: reading .*a.xlsx needs the package openpyxl: pip install openpyxl$"
    ):
        read_sheet(path, "bid")


def test_short_lines_of_a_csv_have_empty_fields(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("score,image\n3\n4,a.png\n")
    assert list(read_table(path, ("image", "score"))) == [
        {"score": "3", "image": ""},
        {"score": "4", "image": "a.png"},
    ]


# Of 2,000 damaged files these two, among 15 others, end scipy 1.17's process with SIGSEGV.
CRASHING = (436, 528)


@pytest.mark.parametrize("every", [250, pytest.param(5, marks=pytest.mark.slow)])
def test_no_damaged_mat_file_ends_the_process(tmp_path, every):
    path = tmp_path / "a.mat"
    scipy.io.savemat(
        path, {"names": cells([f"{i}.bmp" for i in range(30)]), "scores": np.arange(30.0)}
    )
    sound, rng, told = path.read_bytes(), np.random.default_rng(3), []
    for i, data in enumerate([fuzz.damaged(sound, rng) for _ in range(2000)]):
        if i % every == 0 or i in CRASHING:
            path.write_bytes(data)
            try:
                read_mat(path, "names", "scores")
            except UserError as problem:
                told.append(str(problem))
    assert all(line.startswith(f"{path}: ") for line in told) and len(told) >= 1000 / every
    assert sum("it is damaged, the parser crashed" in line for line in told) >= len(CRASHING)


TABLES = {  # the same table as people have it
    "blanks": "image , mos\n a.png, 1.5 \nb.png ,2\n",
    "blanks before quotes": 'image, mos\na.png, "1.5"\n"b.png", 2\n',
    "empty rows": "\nimage,mos\n,\na.png,1.5\n , \n\nb.png,2\n,,,\n",
    "semicolons": "image;mos\na.png;1.5\nb.png;2\n",
    "tabs": "image\tmos\na.png\t1.5\nb.png\t2\n",
    "capitals": "Image,MOS\na.png,1.5\nb.png,2\n",
    "another column in another case": "MOS,image,mos\n7,a.png,1.5\n8,b.png,2\n",
    "DOS": "image,mos\r\na.png,1.5\r\nb.png,2\r\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("form", TABLES)
def test_a_table_as_people_have_it(tmp_path, form, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(TABLES[form].encode(encoding))
    assert list(read_table(path, ("image", "mos"), ("split",))) == [
        {"image": "a.png", "mos": "1.5"},
        {"image": "b.png", "mos": "2"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "img_name;mos\n",
            "a.csv: no column image; expected image, mos, found img_name, mos; more",
        ),
        ("", "a.csv: no column image, mos; expected image, mos, found none; more"),
        (
            "image,mos\na.png,1\n\nb.png,4,5\n",
            "a.csv: line 4 has 3 cells below 2 column names: a decimal comma, or",
        ),
        (
            "image,mos\nGrün.png,1\n".encode("latin-1"),
            "a.csv: not a readable CSV file in UTF-8 or UTF-16: 'utf-8'",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        list(read_table(path, ("image", "mos"), more="; more"))
    assert "\n" not in str(raised.value)


def test_text_files_in_utf_16(tmp_path):
    (tmp_path / "a.txt").write_text("5.5 ä.bmp\n\n6 b.bmp\n", encoding="utf-16")
    assert read_lines(tmp_path / "a.txt") == ["5.5 ä.bmp", "6 b.bmp"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_lists_go_by_base_names_wherever_their_paths_point(tmp_path, encoding):
    places = ("{}", "/data/spaq/{}", "../spaq/{}", "C:\\\\spaq\\\\{}", "spaq_test/./{}")
    entries = ", ".join(
        f'{{"image": "{p.format(f"{i}.jpg")}", "score": {i}}}' for i, p in enumerate(places)
    )
    (tmp_path / "a.json").write_text(f"[{entries}]", encoding=encoding)
    assert read_json_scores(tmp_path / "a.json") == {f"{i}.jpg": i for i in range(5)}


@pytest.mark.parametrize("read", [read_json_scores, read_json_list])
@pytest.mark.parametrize("content", ["[" * 100_000, "3", '{"files": 3}', '[{"score": 1}]', "[[1]]"])
def test_damaged_json_lists_are_one_line(tmp_path, read, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a.json: expected a JSON list of \{"):
        read(tmp_path / "a.json")
