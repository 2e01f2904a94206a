import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import score_of, write_images, write_koniq, write_spaq

from folders import READERS, DataSet, Demo, KonIQ10k, Record, find_spaq, take_validation
from options import UserError


def rewrite_csv(root, change):
    """Apply `change` to the list of rows (header first) of a KonIQ score file."""
    path = root / "koniq10k_scores_and_distributions.csv"
    rows = list(csv.reader(path.open(newline="")))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def root(tmp_path):
    return write_koniq(tmp_path / "koniq-10k", train=10, test=5, size=(32, 24))


def sets_csv(root, **parts):
    lines = [f"{name},{part}" for part, names in parts.items() for name in names]
    (root / "koniq10k_distributions_sets.csv").write_text("image_name,set\n" + "\n".join(lines) + "\n")


def drop_json(root):
    for part in ("train", "test"):
        (root / f"koniq_{part}.json").unlink()


def names(data, split):
    return sorted(r.path.name for r in data.split(split))


TRAIN, TEST = [f"train_{i}.jpg" for i in range(10)], [f"test_{i}.jpg" for i in range(5)]


def test_koniq_with_json_lists_takes_the_csvs_scores(root):
    data = KonIQ10k(root).read()
    assert names(data, "train") == TRAIN and names(data, "test") == TEST and data.higher_is_better
    assert {r.path.name: r.score for r in data.split("test")} == {n: score_of(i, 5) for i, n in enumerate(TEST)}
    assert all(r.path.parent.name == r.split and r.path.is_file() for r in data.records)


@pytest.mark.parametrize("folder", ["1024x768", "512x384"])
def test_koniq_with_one_image_folder(root, folder):
    (root / folder).mkdir()
    for part in ("train", "test"):
        for path in (root / part).iterdir():
            path.rename(root / folder / path.name)
        (root / part).rmdir()
    assert names(KonIQ10k(root).read(), "train") == TRAIN


def test_koniq_with_the_official_sets_needs_no_validation_images(root):
    drop_json(root)
    sets_csv(root, training=TRAIN[:8], validation=["train_8.jpg", "train_9.jpg"], test=TEST)
    for name in ("train_8.jpg", "train_9.jpg"):
        (root / "train" / name).unlink()
    data = KonIQ10k(root).read()
    assert names(data, "train") == TRAIN[:8] and names(data, "test") == TEST and not data.split("val")


def test_koniq_without_a_split_is_drawn_by_seed_and_says_so(root):
    drop_json(root)
    first, again, other = (KonIQ10k(root, seed).read() for seed in (1, 1, 2))
    assert len(first.split("train")) == 12 and len(first.split("test")) == 3
    assert names(first, "test") == names(again, "test") != names(other, "test")
    assert any("random 80/20 split of 15 images, seed 1" in note for note in first.notes)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_official_validation_images_are_those_in_neither_list(root):
    """Beside JSON lists that leave them out, and lying in another layout's folder."""
    sets_csv(root, training=TRAIN, validation=["val_0.jpg", "val_1.jpg", "train_9.jpg"], test=TEST)
    rewrite_csv(root, lambda rows: rows.extend([[f"val_{i}.jpg", 0, 3, 50.0 + i] for i in (0, 1)]))
    with pytest.raises(
        UserError, match=r"2 validation images are not in .*: val_0.jpg, val_1.jpg; give --val_fraction F"
    ):
        KonIQ10k(root).read(("train", "val", "test"))
    write_images(root / "1024x768", ["val_0.jpg", "val_1.jpg"], (32, 24))
    data = KonIQ10k(root).read(("train", "val", "test"))
    assert names(data, "val") == ["val_0.jpg", "val_1.jpg"] and names(data, "train") == TRAIN
    assert KonIQ10k(root).read().split("val") == []


def test_a_validation_fraction_takes_whole_groups_of_the_training_images():
    records = [Record(Path(f"{i}.png"), i, "train" if i < 16 else "test", f"scene{i // 2}") for i in range(20)]
    drawn = []
    for seed in (1, 1, 2):
        data = DataSet("set", list(records))
        take_validation(data, 0.25, seed)
        assert len(data.split("train")) == 12 and len(data.split("val")) == 4 and len(data.split("test")) == 4
        assert {r.group for r in data.split("val")}.isdisjoint({r.group for r in data.split("train")})
        drawn.append({r.path for r in data.split("val")})
    assert drawn[0] == drawn[1] != drawn[2] and "2 of 8 training contents" in data.notes[0]
    with pytest.raises(UserError, match="--val_fraction 0.01: takes 0 of 8 training contents"):
        take_validation(DataSet("set", list(records)), 0.01, 1)


def test_csv_rows_in_neither_list_are_left_out_and_counted(root):
    rewrite_csv(root, lambda rows: rows.append(["stranger.jpg", 0, 3, 50.0]))
    data = KonIQ10k(root).read()
    assert len(data.records) == 15
    assert data.notes == ["koniq-10k: 1 images of the CSV are in no split and left out"]


def test_fingerprint_sees_scores_but_not_where_the_folder_lies(root, tmp_path):
    before = KonIQ10k(root).read().fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert KonIQ10k(moved).read().fingerprint() == before
    rewrite_csv(root, lambda rows: rows[1].__setitem__(3, 11.0))
    assert KonIQ10k(root).read().fingerprint() != before


def delete_images(root):
    for i in range(7):
        (root / "train" / f"train_{i}.jpg").unlink()


def set_json(root, part, entries):
    (root / f"koniq_{part}.json").write_text(json.dumps(entries))


BROKEN_KONIQ = {
    "missing folder": (
        shutil.rmtree,
        r"koniq-10k: no folder .*; expected koniq10k_scores_and_distributions.csv, images",
    ),
    "no score file": (
        lambda root: (root / "koniq10k_scores_and_distributions.csv").unlink(),
        "koniq10k_scores_and_distributions.csv: not a readable CSV file: .*No such file",
    ),
    "no column": (
        lambda root: rewrite_csv(root, lambda rows: rows[0].__setitem__(3, "score")),
        "no column MOS_zscore; expected image_name, MOS_zscore, found image_name, c1, MOS, score",
    ),
    "images missing": (
        delete_images,
        r"7 of 15 images are not in .*train and .*test: train_0.jpg, train_1.jpg, .*train_4.jpg, …",
    ),
    "score is no number": (
        lambda root: rewrite_csv(root, lambda rows: (rows[1].__setitem__(3, "nan"), rows[2].__setitem__(3, "good"))),
        "2 scores are not numbers: train_0.jpg, train_1.jpg",
    ),
    "empty split": (lambda root: set_json(root, "test", []), "the test split of .* is empty"),
    "one list only": (lambda root: (root / "koniq_test.json").unlink(), "koniq_train.json needs its twin"),
    "JSON of another form": (
        lambda root: set_json(root, "test", {"a": 1}),
        'expected a JSON list of {"image", "score"}',
    ),
    "image in both lists": (
        lambda root: set_json(root, "test", [{"image": "x/train_3.jpg", "score": 1}]),
        "1 images are in both JSON lists: train_3.jpg",
    ),
    "list names an unscored image": (
        lambda root: set_json(root, "test", [{"image": "x/nobody.jpg", "score": 1}]),
        "1 images of the split have no score .*: nobody.jpg",
    ),
    "no image folder": (
        lambda root: shutil.rmtree(root / "test"),
        r"no images in .*; expected train/\+test/ or 1024x768/ or 512x384/",
    ),
    "strange set": (
        lambda root: (drop_json(root), sets_csv(root, training=TRAIN, exam=TEST)),
        "column set: expected training, validation or test, found exam",
    ),
}


@pytest.mark.parametrize("case", BROKEN_KONIQ)
def test_what_is_wrong_with_koniq_is_said(root, case):
    damage, message = BROKEN_KONIQ[case]
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        KonIQ10k(root).read()
    assert "\n" not in str(raised.value)


def test_spaq_json_form(tmp_path):
    root = write_spaq(tmp_path / "spaq", 4)
    data = READERS["spaq"](root).read_all_as_test()
    assert len(data.split("test")) == 4 and data.notes == []
    assert sorted(r.score for r in data.records) == [score_of(i, 4) for i in range(4)]
    (root / "TestImage").mkdir()
    for path in root.glob("*.jpg"):
        path.rename(root / "TestImage" / path.name)
    trained_on = READERS["spaq"](root).read()
    assert len(trained_on.split("train")) == 3 and len(trained_on.split("test")) == 1


def test_where_spaq_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("folders.HERE", tmp_path)
    assert find_spaq(None) is None
    (tmp_path / "spaq-test").mkdir()
    assert find_spaq(None) == tmp_path / "spaq-test"
    (tmp_path / "spaq").mkdir()
    assert find_spaq(None) == tmp_path / "spaq"
    assert find_spaq(tmp_path / "mine") == tmp_path / "mine"


def write_table(path, text):
    write_images(path.parent / "pictures", [f"{c}.png" for c in "abcdefghij"], (20, 20))
    path.write_text(text)
    return path


def test_csv_with_splits_and_direction(tmp_path):
    path = write_table(
        tmp_path / "mine.csv",
        "image,mos,split\npictures/a.png,1.5,train\npictures/b.png,2,test\npictures/c.png,3,val\n",
    )
    data = READERS["csv"](path, lower_is_better=True).read()
    assert [(r.path.name, r.score, r.split) for r in data.records] == [("a.png", 1.5, "train"), ("b.png", 2.0, "test")]
    assert not data.higher_is_better


def test_csv_groups_are_not_torn_apart(tmp_path):
    rows = [f"pictures/{c}.png,{i},scene{i // 2}" for i, c in enumerate("abcdefghij")]
    data = READERS["csv"](write_table(tmp_path / "mine.csv", "image,mos,group\n" + "\n".join(rows)), 3).read()
    assert len(data.split("train")) == 8
    assert {r.group for r in data.split("train")}.isdisjoint({r.group for r in data.split("test")})
    assert "reference contents" in data.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score\n", "no column mos; expected image, mos, found image, score"),
        ("image,mos\n", "lists no images; expected a CSV file"),
        ("image,mos\n/etc/passwd,1\n../b.png,2\n", "2 image names leave its folder: /etc/passwd, ../b.png"),
        ("image,mos,split\npictures/a.png,1,exam\n", "column split: expected train, val or test, found 'exam'"),
        ("image,mos\npictures/a.png,1\npictures/z.png,2\n", "1 of 2 images are not in its folder: pictures/z.png"),
        ("image,mos,split\npictures/a.png,1,train\n", "the test split of .* is empty"),
        ("image,mos\npictures/a.png,1\npictures/a.png,1\n", "1 images are listed twice: pictures/a.png"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        READERS["csv"](write_table(tmp_path / "mine.csv", text)).read()


def test_demo_is_made_on_first_use_and_read_as_koniq_and_spaq(tmp_path):
    reader = Demo(tmp_path / "demo")
    data, spaq = reader.read(), READERS["spaq"](reader.spaq_root).read_all_as_test()
    assert len(data.split("train")) >= 150 and len(data.split("test")) >= 50 and len(spaq.records) >= 40
    made = sorted((tmp_path / "demo").rglob("*.jpg"))[0].stat().st_mtime_ns
    assert len(Demo(tmp_path / "demo").read().records) == len(data.records)
    assert sorted((tmp_path / "demo").rglob("*.jpg"))[0].stat().st_mtime_ns == made
