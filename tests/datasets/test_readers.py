import csv
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import scipy.io
from helpers import score_of, write_book, write_dir, write_images, write_koniq, write_spaq
from releases import CSIQ_HEADER, RELEASES, write_csiq, write_live, write_official_spaq

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.authentic import KonIQ10k
from hyperiqa.datasets.demo import Demo
from hyperiqa.datasets.readers import DEFAULT_RESIZE, READERS, find_spaq
from hyperiqa.datasets.records import Columns, DataSet, take_validation


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
    (root / "koniq10k_distributions_sets.csv").write_text(
        "image_name,set\n" + "\n".join(lines) + "\n"
    )


def drop_json(root):
    for part in ("train", "test"):
        (root / f"koniq_{part}.json").unlink()


def names(data, split):
    return sorted(r.path.name for r in data.split(split))


TRAIN, TEST = [f"train_{i}.jpg" for i in range(10)], [f"test_{i}.jpg" for i in range(5)]


def test_koniq_with_json_lists_takes_the_csvs_scores(root):
    data = KonIQ10k(root).read()
    assert names(data, "train") == TRAIN and names(data, "test") == TEST and data.higher_is_better
    assert {r.path.name: r.score for r in data.split("test")} == {
        n: score_of(i, 5) for i, n in enumerate(TEST)
    }
    assert all(r.path.parent.name == r.split and r.path.is_file() for r in data.records)


@pytest.mark.parametrize(
    "folder",
    [
        "1024x768",
        "512x384",
        "koniq10k_1024x768",
        "512x384/512x384",
        "koniq10k_512x384/512x384",
        "1024X768/1024x768",
    ],
)
def test_koniq_with_one_image_folder(root, folder):
    (root / folder).mkdir(parents=True)
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
    assert (
        names(data, "train") == TRAIN[:8] and names(data, "test") == TEST and not data.split("val")
    )


def test_koniq_gives_standard_errors_on_the_scale_of_its_scores(root):
    """MOS_zscore 20·MOS - 13: SD/sqrt(votes) of 1..5 becomes twenty times as much."""
    path = root / "koniq10k_scores_and_distributions.csv"
    names = [line.split(",")[0].strip('"') for line in path.read_text().splitlines()[1:]]
    header = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    values = [(name, 1.5 + 0.2 * k, 0.3 + 0.05 * k, 25 * (k + 1)) for k, name in enumerate(names)]
    rows = [
        f"{name},0,0,0,0,0,{votes},{mos},{sd},{20 * mos - 13}" for name, mos, sd, votes in values
    ]
    path.write_text("\n".join([header, *rows]))
    data = KonIQ10k(root).read()
    expected = {name: 20 * sd / votes**0.5 for name, _, sd, votes in values}
    assert {r.name: r.error for r in data.records} == pytest.approx(expected)
    plain = [replace(r, error=None) for r in data.records]
    assert (
        replace(data, records=plain).fingerprint() == data.fingerprint()
    )  # which is what it was before
    assert replace(data, records=plain).votes(["error"]) != data.votes(["error"])
    assert {r.name: r.deviation for r in data.records} == pytest.approx(
        {name: 20 * sd for name, _, sd, _ in values}
    )
    # A count of votes or a deviation that is none leaves one error unknown, an unknown MOS all.
    first, *others = rows
    for votes in ("nan", "-1", "0"):
        path.write_text("\n".join([header, first.replace(",0,25,", f",0,{votes},"), *others]))
        errors = {r.name: r.error for r in KonIQ10k(root).read().records}
        assert errors.pop(first.partition(",")[0]) is None
        assert errors == pytest.approx({name: expected[name] for name in errors})
    path.write_text("\n".join([header, first.replace(",0.3,", ",?,"), *others]))
    errors = [r.error for r in KonIQ10k(root).read().records]
    assert errors.count(None) == 1 and len(errors) == len(rows)
    path.write_text("\n".join([header, first.replace(",1.5,", ",?,"), *others]))
    assert {r.error for r in KonIQ10k(root).read().records} == {None}


def test_koniq_in_another_case_is_the_same(root):
    expected = KonIQ10k(root).read().fingerprint()
    for path in [*root.glob("*.*"), root / "train"]:
        path.rename(root / path.name.upper())
    assert KonIQ10k(root).read().fingerprint() == expected
    (root / "test" / "test_3.jpg").rename(root / "test" / "test_3.JPG")
    assert names(KonIQ10k(root).read(), "test") == sorted([*TEST[:3], "test_3.JPG", "test_4.jpg"])


def test_koniq_with_the_sets_file_alone(root):
    """Its MOS is the other file's MOS_zscore."""
    scores = {r.name: r.score for r in KonIQ10k(root).read().records}
    drop_json(root)
    (root / "koniq10k_scores_and_distributions.csv").unlink()
    sets_csv(root, training=TRAIN, test=TEST)
    with pytest.raises(
        UserError, match="no column MOS; .*; koniq10k_scores_and_distributions.csv is missing"
    ):
        KonIQ10k(root).read()
    lines = [
        f"{name},{score},0.5,{'test' if name in TEST else 'training'}"
        for name, score in scores.items()
    ]
    (root / "koniq10k_distributions_sets.csv").write_text(
        "image_name,MOS,SD,set\n" + "\n".join(lines)
    )
    data = KonIQ10k(root).read()
    assert {r.name: r.score for r in data.records} == scores and names(data, "test") == TEST
    assert (
        "scores_and_distributions.csv is missing; scores are the MOS of koniq10k_distributions_s"
        in data.notes[0]
    )


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
        UserError,
        match=r"2 validation images are not in .*: val_0.jpg, val_1.jpg; give --val_fraction F",
    ):
        KonIQ10k(root).read(("train", "val", "test"))
    write_images(root / "1024x768", ["val_0.jpg", "val_1.jpg"], (32, 24))
    data = KonIQ10k(root).read(("train", "val", "test"))
    assert names(data, "val") == ["val_0.jpg", "val_1.jpg"] and names(data, "train") == TRAIN
    assert KonIQ10k(root).read().split("val") == []


def test_csv_rows_in_neither_list_are_left_out_and_counted(root):
    rewrite_csv(root, lambda rows: rows.append(["stranger.jpg", 0, 3, 50.0]))
    data = KonIQ10k(root).read()
    assert len(data.records) == 15
    assert data.notes == ["koniq-10k: 1 image of the CSV is in no split and left out"]


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
        "no koniq10k_scores_and_distributions.csv or koniq10k_distributions_sets.csv in .*; expected koniq10k_scores",
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
        lambda root: rewrite_csv(
            root, lambda rows: (rows[1].__setitem__(3, "nan"), rows[2].__setitem__(3, "good"))
        ),
        "2 scores are not numbers: train_0.jpg, train_1.jpg",
    ),
    "empty split": (lambda root: set_json(root, "test", []), "the test split of .* is empty"),
    "one list only": (
        lambda root: (root / "koniq_test.json").unlink(),
        "koniq_train.json needs its twin",
    ),
    "JSON of another form": (
        lambda root: set_json(root, "test", {"a": 1}),
        'expected a JSON list of {"image", "score"}',
    ),
    "image in both lists": (
        lambda root: set_json(root, "test", [{"image": "x/train_3.jpg", "score": 1}]),
        "1 image is in both JSON lists: train_3.jpg",
    ),
    "list names an unscored image": (
        lambda root: set_json(root, "test", [{"image": "x/nobody.jpg", "score": 1}]),
        "1 image of the split has no score .*: nobody.jpg",
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
    monkeypatch.setattr("hyperiqa.base.files.HERE", tmp_path)
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
    assert [(r.path.name, r.score, r.split) for r in data.records] == [
        ("a.png", 1.5, "train"),
        ("b.png", 2.0, "test"),
    ]
    assert not data.higher_is_better


def test_csv_groups_are_not_torn_apart(tmp_path):
    rows = [f"pictures/{c}.png,{i},scene{i // 2}" for i, c in enumerate("abcdefghij")]
    data = READERS["csv"](
        write_table(tmp_path / "mine.csv", "image,mos,group\n" + "\n".join(rows)), 3
    ).read()
    assert len(data.split("train")) == 8
    assert {r.group for r in data.split("train")}.isdisjoint({r.group for r in data.split("test")})
    assert "reference contents" in data.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score\n", "no column mos; expected image, mos, found image, score"),
        ("image,mos\n", "lists no images; expected a CSV file"),
        (
            "image,mos\n/etc/passwd,1\n../b.png,2\n",
            "2 image names leave its folder: /etc/passwd, ../b.png",
        ),
        (
            "image,mos,split\npictures/a.png,1,exam\n",
            "column split: expected train, val or test, found 'exam'",
        ),
        (
            "image,mos\npictures/a.png,1\npictures/z.png,2\n",
            "1 of 2 images is not in its folder: pictures/z.png",
        ),
        ("image,mos,split\npictures/a.png,1,train\n", "the test split of .* is empty"),
        (
            "image,mos\npictures/a.png,1\n.\\pictures//a.png,1\npictures/b.png,1\n",
            "1 image is listed twice: pictures/a.png",
        ),
        (
            "image,mos\npictures/a.png,1\npictures/a.PNG,1\npictures/b.png,1\n",
            "several names: pictures/a.png = pictures/a.PNG",
        ),
        ("image,mos\npictures/a.png,1\n,2\n", "column image is empty in 1 row"),
        (
            "image;mos\npictures/a.png;1,5\npictures/b.png;2\n",
            "column mos: 1 score has a decimal comma, such as 1,5",
        ),
        (
            "image,mos,group\npictures/a.png,1,g\npictures/b.png,2,g\n",
            "the train split of .* is empty: drawing a split takes two contents, and all images have the same, g",
        ),
        (
            "image,mos\npictures/a.png,1\n",
            "takes two contents, and all images have the same, pictures/a.png",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as raised:
        READERS["csv"](write_table(tmp_path / "mine.csv", text)).read()
    assert "\n" not in str(raised.value)


def test_a_missing_csv_is_called_missing(tmp_path):
    with pytest.raises(UserError, match=r"csv: no file .*mine.csv; expected a CSV file"):
        READERS["csv"](tmp_path / "mine.csv").read()


def named(data):
    return {r.name: (r.path, r.score, r.split, r.group) for r in data.records}


def test_equal_base_names_in_a_csvs_folders_are_different_images(tmp_path):
    for folder in "ab":
        write_images(tmp_path / folder, [f"{i}.png" for i in range(4)], (20, 20))
    images = [f"{folder}/{i}.png" for folder in "ab" for i in range(4)]
    lines = [f"{name},{i},{'test' if i > 6 else 'train'}\n" for i, name in enumerate(images)]
    (tmp_path / "mine.csv").write_text("image,mos,split\n" + "".join(lines))
    data = READERS["csv"](tmp_path / "mine.csv").read()
    assert [r.name for r in data.records] == images
    take_validation(data, 0.5, 1)
    assert len(data.split("val")) == 4 and "4 of 7 training contents" in data.notes[0]


def test_however_a_csv_spells_an_image_it_has_one_name(tmp_path):
    spelt = [
        "pictures/a.png",
        "./pictures/b.png",
        "pictures\\c.png",
        "pictures//x/../d.png",
        "pictures/e.PNG",
    ]
    spelt.append(str(tmp_path / "pictures" / "f.png"))
    path = write_table(
        tmp_path / "mine.csv",
        "image,mos\n" + "".join(f"{name},{i}\n" for i, name in enumerate(spelt)),
    )
    data = READERS["csv"](path).read_all_as_test()
    assert [r.name for r in data.records] == [f"pictures/{c}.png" for c in "abcdef"]
    assert [r.path for r in data.records] == [tmp_path / "pictures" / f"{c}.png" for c in "abcdef"]


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_one_file_by_two_names_is_found(tmp_path, link):
    path = write_table(
        tmp_path / "mine.csv", "image,mos,split\npictures/a.png,1,train\npictures/z.png,1,test\n"
    )
    getattr(tmp_path / "pictures" / "z.png", link)(tmp_path / "pictures" / "a.png")
    with pytest.raises(
        UserError, match="1 image is listed by several names: pictures/a.png = pictures/z.png"
    ):
        READERS["csv"](path).read()


def test_a_csv_with_other_columns_and_images_elsewhere(tmp_path):
    write_table(tmp_path / "there" / "x.csv", "")
    path = tmp_path / "meta.csv"
    place = tmp_path / "there" / "pictures"
    path.write_text(f"img_name,MOS,part,scene,mos\na.png,1.5,train,s,9\n{place}/b.png,2,test,t,9\n")
    columns = Columns("img_name", "MOS", "part", "scene", place)
    assert named(READERS["csv"](path, columns=columns).read()) == {
        "a.png": (place / "a.png", 1.5, "train", "s"),
        "b.png": (place / "b.png", 2.0, "test", "t"),
    }
    for change, message in (
        (
            {"split_column": "fold"},
            "no column fold; expected img_name, MOS, fold, scene, found img_name, MOS, part",
        ),
        ({"image_column": "image"}, "no column image; .*; --image_column, --score_column"),
        ({"image_root": place / "deeper"}, "--image_root .*deeper: no such folder"),
        (
            {"image_root": tmp_path},
            "1 of 2 images is not in --image_root .*: a.png; --image_root FOLDER names",
        ),
        (
            {"image_root": None},
            "1 of 2 images is not in its folder: a.png; --image_root FOLDER names another folder",
        ),
    ):
        with pytest.raises(UserError, match=message):
            READERS["csv"](path, columns=replace(columns, **change)).read()
    path.write_text(f"image,mos\na.png,1\n{tmp_path}/b.png,2\n")
    with pytest.raises(
        UserError,
        match=f"1 image name leaves --image_root .*: {tmp_path}/b.png; --image_root FOLDER",
    ):
        READERS["csv"](path, columns=Columns(image_root=place)).read()


def test_demo_is_made_on_first_use_and_read_as_koniq_and_spaq(tmp_path, monkeypatch):
    """In a folder whose modules are called like some that the generator imports."""
    for name in ("csv", "hyperiqa"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the module of the user')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Demo, "counts", {"train": 20, "test": 9, "spaq": 8})
    reader = Demo(tmp_path / "demo")
    data, spaq = reader.read(), READERS["spaq"](reader.spaq_root).read_all_as_test()
    assert [len(data.split(name)) for name in ("train", "test")] == [20, 9]
    assert len(spaq.records) == 8
    # Four images show one scene.
    assert len({record.group for record in data.records}) == 20 / 4 + 3
    made = sorted((tmp_path / "demo").rglob("*.jpg"))[0].stat().st_mtime_ns
    assert len(Demo(tmp_path / "demo").read().records) == len(data.records)
    assert sorted((tmp_path / "demo").rglob("*.jpg"))[0].stat().st_mtime_ns == made


# The other data sets, each in its authors' layout
@pytest.mark.parametrize("form", RELEASES)
def test_a_release_is_read_for_testing_and_for_training(form, tmp_path, settings):
    write, resize, higher_is_better, contents, training = RELEASES[form]
    name, root = form.split()[0], write_dir(tmp_path / "data")
    expected = write(root)
    everything = READERS[name](root).read_all_as_test()
    assert {r.name: (r.score, r.group, r.kind) for r in everything.records} == expected
    assert {r.split for r in everything.records} == {
        "test"
    } and everything.higher_is_better == higher_is_better
    assert not any("split" in note for note in everything.notes)
    assert all(
        r.path.is_file() and r.path.name == r.name.split("/")[-1] for r in everything.records
    )

    data, again, other = (READERS[name](root, seed).read() for seed in (1, 1, 2))
    train, test = data.split("train"), data.split("test")
    # Of AGIQA-3K's JSON form a split alone needs the prompts.
    known = (r.group if form != "agiqa-3k JSON" else None for r in train + test)
    assert {r.name: (r.score, g, r.kind) for r, g in zip(train + test, known)} == expected
    assert len(train) == training if training else 0.75 < len(train) / len(expected) < 0.85
    unit = f"{contents} reference contents" if contents else f"{len(expected)} images"
    assert any(f"random 80/20 split of {unit}, seed 1" in note for note in data.notes)
    if contents:
        assert {r.group for r in train}.isdisjoint({r.group for r in test})
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()

    options = settings("swin", "--dataset", name, "--dataset_path", root, "--no_spaq")
    assert options.dataset == name and DEFAULT_RESIZE[name] == resize


def test_equal_names_in_lives_folders_are_different_images(tmp_path):
    write_live(tmp_path)
    before = READERS["live"](tmp_path).read_all_as_test()
    paths = {r.name: r.path for r in before.records}
    assert paths["jp2k/img1.bmp"] == tmp_path / "jp2k" / "img1.bmp" != paths["jpeg/img1.bmp"]
    swapped = {"jp2k/img1.bmp": "jpeg/img1.bmp", "jpeg/img1.bmp": "jp2k/img1.bmp"}
    scores = {r.name: r.score for r in before.records}
    records = [replace(r, score=scores[swapped.get(r.name, r.name)]) for r in before.records]
    same_group = {r.group for r in before.records if r.name in swapped}
    assert len(same_group) == 1 and DataSet("live", records).fingerprint() != before.fingerprint()


def test_the_two_spaqs_do_not_pass_for_one_another(tmp_path):
    root = write_dir(tmp_path / "spaq")
    write_official_spaq(root)
    data = READERS["spaq"](root).read_all_as_test()
    assert data.name == "spaq-official" and "the official release of SPAQ" in data.notes[0]
    (root / "spaq_test.json").write_text(json.dumps([{"image": "00002.jpg", "score": 30.5}]))
    data = READERS["spaq"](root).read_all_as_test()
    assert (data.name, data.notes, [r.name for r in data.records]) == ("spaq", [], ["00002.jpg"])


def test_csiq_images_in_one_folder(tmp_path):
    expected = write_csiq(tmp_path)
    write_dir(tmp_path / "dst_imgs_all")
    for path in (tmp_path / "dst_imgs").glob("*/*.png"):
        path.rename(tmp_path / "dst_imgs_all" / path.name)
    shutil.rmtree(tmp_path / "dst_imgs")
    assert {r.name for r in READERS["csiq"](tmp_path).read_all_as_test().records} == expected.keys()


def test_every_kind_has_a_name_of_its_own():
    counts = {"kadid-10k": 25, "tid2013": 24, "live": 5}
    assert {name: len(set(READERS[name].kinds)) for name in counts} == counts
    assert len({text for _, text in READERS["csiq"].kinds.values()}) == 6


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def set_mat(path, **variables):
    scipy.io.savemat(path, variables)


BROKEN_RELEASES = {
    "kadid without scores": (
        "kadid-10k",
        lambda root: (root / "dmos.csv").unlink(),
        "kadid-10k: no kadid_test.json or dmos.csv in .*; expected kadid_test.json or dmos.csv, and images in images/",
    ),
    "kadid without the column": (
        "kadid-10k",
        lambda root: edit(root / "dmos.csv", "dmos,", "mos,"),
        "dmos.csv: no column dmos; expected dist_img, dmos, found dist_img, ref_img, mos, var",
    ),
    "kadid with other names": (
        "kadid-10k",
        lambda root: (
            edit(root / "dmos.csv", "I01_01_01.png", "I01.png"),
            edit(root / "dmos.csv", "I01_01_03.png", "I01_26_03.png"),
        ),
        "dmos.csv: 2 image names are not CONTENT_KIND_LEVEL with a kind of 1 to 25, such as .*: I01.png, I01_26_03.png",
    ),
    "kadid without an image": (
        "kadid-10k",
        lambda root: (root / "images" / "I01_01_01.png").unlink(),
        "kadid-10k: 1 of 30 images is not in .*images: I01_01_01.png",
    ),
    "agiqa with a score that is none": (
        "agiqa-3k",
        lambda root: edit(root / "data.csv", ",0.5,", ",good,"),
        "agiqa-3k: 1 score is not a number: AttnGAN_normal_001.jpg",
    ),
    "agiqa pointing elsewhere": (
        "agiqa-3k",
        lambda root: edit(root / "data.csv", "DALLE2_000", "../DALLE2_000"),
        "1 image name leaves its folder: ../DALLE2_000.jpg",
    ),
    "livec without the variable": (
        "livec",
        lambda root: set_mat(root / "Data/AllMOS_release.mat", MOS=[1.0]),
        "AllMOS_release.mat: no variable AllMOS_release; expected AllMOS_release",
    ),
    "livec with fewer scores": (
        "livec",
        lambda root: set_mat(root / "Data/AllMOS_release.mat", AllMOS_release=[1.0, 2.0]),
        "Data: these must be of one length: AllImages_release 12, AllMOS_release 2",
    ),
    "livec without a file": (
        "livec",
        lambda root: (root / "Data/AllImages_release.mat").unlink(),
        "livec: no Data/AllImages_release.mat in .*; expected Data/AllImages_release.mat, Data/AllMOS_release.mat",
    ),
    "livec without images": (
        "livec",
        lambda root: shutil.rmtree(root / "Images"),
        "livec: no images in .*; expected Images/",
    ),
    "live with another number of scores": (
        "live",
        lambda root: set_mat(root / "dmos_realigned.mat", dmos_new=[1.0, 2.0], orgs=[0, 0]),
        "one length: dmos_realigned.mat 2, refnames_all.mat 982, images of the release 982",
    ),
    "live with lengths that differ": (
        "live",
        lambda root: set_mat(root / "dmos_realigned.mat", dmos_new=[1.0, 2.0], orgs=[0]),
        "dmos_realigned.mat: these must be of one length: dmos_new 2, orgs 1",
    ),
    "live without a folder": (
        "live",
        lambda root: shutil.rmtree(root / "wn"),
        r"live: no images in .*; expected jp2k/\+jpeg/\+wn/\+gblur/\+fastfading/",
    ),
    "live without an image": (
        "live",
        lambda root: (root / "wn/img3.bmp").unlink(),
        "live: 1 of 779 images is not in .*: wn/img3.bmp",
    ),
    "csiq without the sheet": (
        "csiq",
        lambda root: write_book(root / "csiq.DMOS.xlsx", Sheet1=[CSIQ_HEADER]),
        "csiq.DMOS.xlsx: no sheet all_by_image; found Sheet1",
    ),
    "csiq without the column": (
        "csiq",
        lambda root: write_csiq(
            root, ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "mos"]
        ),
        "csiq.DMOS.xlsx: no row with the columns image, dst_type, dst_lev, dmos; its first row holds CSIQ",
    ),
    "csiq with another distortion": (
        "csiq",
        lambda root: write_book(
            root / "csiq.DMOS.xlsx", all_by_image=[CSIQ_HEADER, ["elk", 1, "rain", 1, 0, 0.5]]
        ),
        "column dst_type: expected noise, .*, contrast, found 'rain'",
    ),
    "csiq with a score that is none": (
        "csiq",
        lambda root: write_book(
            root / "csiq.DMOS.xlsx", all_by_image=[CSIQ_HEADER, ["elk", 1, "blur", 1, 0, "#N/A"]]
        ),
        "csiq: 1 score is not a number: elk.blur.1.png",
    ),
    "tid2013 with other lines": (
        "tid2013",
        lambda root: (root / "mos_with_names.txt").write_text("5.5 I01_01_1.bmp\nI01_01_5.bmp\n"),
        "mos_with_names.txt: expected lines of MOS and image name, found I01_01_5.bmp",
    ),
    "tid2013 that is no text": (
        "tid2013",
        lambda root: (root / "mos_with_names.txt").write_bytes(b"\xff\xfe\x00"),
        "mos_with_names.txt: not a readable text file",
    ),
    "tid2013 with one image twice": (
        "tid2013",
        lambda root: (root / "mos_with_names.txt").write_text(
            "5.5 I01_01_1.bmp\n5 I02_01_1.bmp\n5.5 i01_01_1.BMP\n"
        ),
        "tid2013: 1 image is listed twice: I01_01_1.bmp",
    ),
    "bid with other numbers": (
        "bid",
        lambda root: write_book(
            root / "DatabaseGrades.xlsx", a=[["n", "g"], [1, 2.0], ["two", 3], [None, 4], [2.5]]
        ),
        "DatabaseGrades.xlsx: column 1: expected image numbers, found two, None, 2.5",
    ),
    "bid without a grade": (
        "bid",
        lambda root: write_book(root / "DatabaseGrades.xlsx", a=[["n", "g"], [1, 2.0], [2]]),
        "bid: 1 score is not a number: DatabaseImage0002.JPG",
    ),
    "bid with an empty sheet": (
        "bid",
        lambda root: write_book(root / "DatabaseGrades.xlsx", a=[]),
        "bid: .* lists no images; expected DatabaseGrades.xlsx",
    ),
    "spaq without either": (
        "spaq official",
        lambda root: shutil.rmtree(root / "Annotations"),
        "spaq: no spaq_test.json or Annotations/MOS and Image attribute scores.xlsx in .*; expected spaq_test.json",
    ),
}


SPAQ_LINES = [(f"{i:05}.jpg", 10.5 + 10 * i, 3.0 + i) for i in range(1, 6)]


def write_deviations(path, lines=SPAQ_LINES):
    if path.suffix == ".xlsx":
        write_book(
            path, Sheet1=[["Image name", "MOS", "Std", "Brightness"], *([*x, 1] for x in lines)]
        )
    else:
        write_dir(path.parent)
        path.write_text("".join(f"{name} {mos:.4f}\t{sd:.4f}\n" for name, mos, sd in lines))


@pytest.mark.parametrize(
    "file",
    [
        "SPAQ_mos_std.txt",
        "annotations/spaq_MOS_std.txt",
        "Annotations/MOS Std and Image attribute scores.xlsx",
    ],
)
@pytest.mark.parametrize("form", ["official", "json"])
def test_spaq_takes_the_standard_deviations_of_its_authors_file(tmp_path, form, file):
    root = tmp_path / "spaq"
    write_official_spaq(root)
    if form == "json":
        listed = [{"image": name, "score": mos} for name, mos, _ in SPAQ_LINES[:4]]
        (root / "spaq_test.json").write_text(json.dumps(listed))
    plain = READERS["spaq"](root).read_all_as_test()
    assert {(r.error, r.deviation) for r in plain.records} == {(None, None)}
    folder, _, name = file.rpartition("/")
    write_deviations(root / ("Annotations" if folder else "") / name)
    data = READERS["spaq"](root).read_all_as_test()
    total = {"official": 5, "json": 4}[form]
    assert [r.deviation for r in data.records] == [4.0, 5.0, 6.0, 7.0, 8.0][:total]
    assert [r.error for r in data.records] == pytest.approx(
        [sd / math.sqrt(15) for _, _, sd in SPAQ_LINES[:total]]
    )
    assert data.fingerprint() == plain.fingerprint()
    assert data.notes == [
        *plain.notes,
        f"{data.name}: standard errors of {total} of {total} MOS, for 15 opinions an image: "
        "no image has fewer, so that the errors may be smaller",
    ]


@pytest.mark.parametrize(
    ("damaged", "left"),
    {
        "a missing image": (SPAQ_LINES[1:], [None, 5.0, 6.0, 7.0, 8.0]),
        "a deviation of 0": ([*SPAQ_LINES[:4], ("00005.jpg", 60.5, 0)], [4.0, 5.0, 6.0, 7.0, None]),
        "no number": ([*SPAQ_LINES[:4], ("00005.jpg", 60.5, math.nan)], [4.0, 5.0, 6.0, 7.0, None]),
        "another scale": ([(name, mos / 100, 0.1) for name, mos, _ in SPAQ_LINES], [None] * 5),
    }.values(),
)
def test_deviations_of_spaq_that_cannot_be_right_are_counted_as_unknown(tmp_path, damaged, left):
    write_official_spaq(tmp_path)
    write_deviations(tmp_path / "SPAQ_mos_std.txt", damaged)
    data = READERS["spaq"](tmp_path).read_all_as_test()
    assert [r.deviation for r in data.records] == left
    known = sum(value is not None for value in left)
    assert f"spaq-official: standard errors of {known} of 5 MOS" in data.notes[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"00001.jpg 30.5\n",
            "1 line is not an image, its MOS and a standard deviation: 00001.jpg 30.5",
        ),
        (b"\xff\xd8\xff\xe0jpeg", "not a readable text file"),
    ],
)
def test_a_damaged_file_of_deviations_is_one_line(tmp_path, content, message):
    write_official_spaq(tmp_path)
    (tmp_path / "SPAQ_mos_std.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"SPAQ_mos_std.txt: {message}") as raised:
        READERS["spaq"](tmp_path).read()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", BROKEN_RELEASES)
def test_what_is_wrong_with_a_release_is_said(case, tmp_path):
    form, damage, message = BROKEN_RELEASES[case]
    root = write_dir(tmp_path / "data")
    RELEASES[form][0](root)
    damage(root)
    with pytest.raises(UserError, match=message) as raised:
        READERS[form.split()[0]](root).read()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("csiq", "csiq.DMOS.xlsx"),
        ("bid", "DatabaseGrades.xlsx"),
        ("spaq official", "MOS and Image attribute scores.xlsx"),
    ],
)
def test_a_set_that_comes_as_a_workbook_says_what_to_install(form, file, tmp_path):
    """In a process of its own, in which Python finds no openpyxl."""
    RELEASES[form][0](write_dir(tmp_path))
    code = (
        "import sys; sys.modules['openpyxl'] = None\n"
        "from hyperiqa.datasets.readers import READERS\nfrom hyperiqa.base.command_line import run_tool\n"
        f"run_tool(lambda: READERS[{form.split()[0]!r}]({str(tmp_path)!r}).read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name = {"spaq official": "spaq-official"}.get(form, form)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {name}: reading ")
    assert done.stderr.endswith(f"{file} needs the package openpyxl: pip install openpyxl\n")
