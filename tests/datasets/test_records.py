import subprocess
import sys
from pathlib import Path

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.reader import Reader
from hyperiqa.datasets.records import DataSet, Record, Row, take_validation


def test_a_validation_fraction_takes_whole_groups_of_the_training_images():
    records = [
        Record(f"{i}.png", Path(f"{i}.png"), i, "train" if i < 16 else "test", f"scene{i // 2}")
        for i in range(20)
    ]
    drawn = []
    for seed in (1, 1, 2):
        data = DataSet("set", list(records))
        take_validation(data, 0.25, seed)
        assert (
            len(data.split("train")) == 12
            and len(data.split("val")) == 4
            and len(data.split("test")) == 4
        )
        assert {r.group for r in data.split("val")}.isdisjoint(
            {r.group for r in data.split("train")}
        )
        drawn.append({r.path for r in data.split("val")})
    assert drawn[0] == drawn[1] != drawn[2] and "2 of 8 training contents" in data.notes[0]
    with pytest.raises(UserError, match="--val_fraction 0.01: takes 0 of 8 training contents"):
        take_validation(DataSet("set", list(records)), 0.01, 1)


def test_fingerprint_tells_folders_apart_where_names_repeat_but_not_kinds():
    def fingerprint(scores, folders, kind=None):
        records = [
            Record(f"{f}/1.bmp", Path("/x/1.bmp"), s, "test", "g", kind)
            for f, s in zip(folders, scores)
        ]
        return DataSet("set", records).fingerprint()

    assert fingerprint((1.0, 2.0), ("a", "b")) != fingerprint((2.0, 1.0), ("a", "b"))
    assert fingerprint((1.0, 2.0), ("a", "b")) == fingerprint((1.0, 2.0), ("a", "b"), "blur")


def test_fingerprint_of_records_without_folders_stays_what_it_was():
    """A run that is resumed, or compared, must find its data set unchanged."""
    records = [
        Record(
            f"{i}.jpg", Path(f"/x/{i}.jpg"), i / 3, "train" if i else "test", "g" if i > 1 else None
        )
        for i in range(4)
    ]
    assert DataSet("set", records).fingerprint() == "6397ee2325e0f693"


def test_why_a_splits_correlations_are_undefined_is_noted():
    scores = {"train": (1.0, 2.0), "val": (50.0, 50.0, 50.0), "test": (7.5,)}
    records = [
        Record(f"{p}{i}", Path(), s, p) for p, found in scores.items() for i, s in enumerate(found)
    ]
    data = DataSet("set", records)
    data.note_undefined()
    assert data.notes == [
        "set: SRCC and PLCC will be nan: all 3 val images have the MOS 50",
        "set: SRCC and PLCC will be nan: there is only 1 test image",
    ]


def test_a_test_on_all_images_draws_no_split(tmp_path):
    class Plain(Reader):
        name, expects = "plain", "images"

        def rows(self):
            return [Row(f"{i}.png", float(i), None, f"g{i}", "blur") for i in range(3)]

    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    data = Plain(tmp_path).read_all_as_test()
    assert [(r.name, r.score, r.split, r.group, r.kind) for r in data.records] == [
        (f"{i}.png", float(i), "test", f"g{i}", "blur") for i in range(3)
    ]
    assert data.notes == []


def test_readers_are_light_to_import():
    """The train scripts check their flags with the readers' names before anything heavy is imported."""
    code = "import sys, hyperiqa.datasets.readers; print(sorted({'torch', 'scipy', 'openpyxl', 'PIL'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )
