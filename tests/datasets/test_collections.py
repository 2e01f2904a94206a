"""Small files in the exact layout of pyiqa's, DeQA-Score's and Q-Align's collections, and of the newer releases."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from helpers import cells, write_book, write_dir, write_images
from releases import write_live

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.readers import READERS
from hyperiqa.datasets.records import take_validation

RATIO = [f"ratio802_seed123_split_{i:02}" for i in range(1, 11)]
OLD = {"0": "train", "1": "val", "2": "test"}


def write_table(path, header, rows):
    write_dir(path.parent)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


# set -> (pyiqa's table, header, rows with a split each, folder of the images in the set's, what is expected of a row:
# name -> (score, group, standard error)); the split is the official one, an old number, or the first random one.
KONIQ_HEADER = "img_name,mos,std,split,c1,c2,c3,c4,c5,c_total".split(",")


def koniq_rows():
    """Opinions on 1..5 whose mean m makes a score of 25·m - 25, as KonIQ's z-scores do about."""
    rows = []
    for k, (a, b) in enumerate([(1, 3), (2, 5), (3, 4), (1, 5)]):
        mean = (a + b) / 2
        shares = [0.5 if c in (a, b) else 0 for c in range(1, 6)]
        rows.append([f"{k}.jpg", 25 * mean - 25, 0.5, str(k % 3), *shares, 100 + k])
    return rows


PYIQA = {
    "koniq-10k": (
        "KonIQ10k",
        KONIQ_HEADER,
        koniq_rows(),
        "512x384",
        {f"{r[0]}": (r[1], OLD[r[3]], None, 25 * 0.5 / math.sqrt(r[-1])) for r in koniq_rows()},
    ),
    "spaq": (
        "SPAQ",
        ["Image name", "MOS", "Brightness", "Brightness", *RATIO],
        [
            [f"{k:05}.jpg", 50.5 + k, 1, 2, ("train", "val")[k % 2], *["train"] * 9]
            for k in range(4)
        ],
        "TestImage",
        {f"{k:05}.jpg": (50.5 + k, ("train", "test")[k % 2], None, None) for k in range(4)},
    ),
    "kadid-10k": (
        "KADID10k",
        ["ref_name", "dist_name", "dmos", "std", *RATIO],
        [
            ["I01.png", f"I01_01_0{k}.png", 4.5 - k, 0.5, ("train", "val")[k % 2], *["val"] * 9]
            for k in range(1, 5)
        ],
        "images",
        {
            f"I01_01_0{k}.png": (4.5 - k, ("train", "test")[k % 2], "I01", 0.5 / math.sqrt(30))
            for k in range(1, 5)
        },
    ),
    "tid2013": (
        "TID2013",
        ["ref_name", "dist_name", "mos", "std", "official_split"],
        [
            ["I01.BMP", f"{'iI'[k % 2]}01_01_{k}.bmp", 5.5, 0.125, ("train", "test")[k % 2]]
            for k in range(1, 5)
        ],
        "distorted_images",
        {
            f"{'iI'[k % 2]}01_01_{k}.bmp": (5.5, ("train", "test")[k % 2], "I01", 0.125)
            for k in range(1, 5)
        },
    ),
    "live": (
        "LIVEIQA",
        ["ref_name", "dist_name", "mos", *RATIO],
        [
            ["refimgs/rapids.bmp", f"{f}/img2.bmp", 28.0 + i, ("train", "val")[i % 2], *["val"] * 9]
            for i, f in enumerate(("jp2k", "jpeg", "wn", "gblur", "fastfading"))
        ],
        "",
        {
            f"{f}/img2.bmp": (28.0 + i, ("train", "test")[i % 2], "rapids.bmp", None)
            for i, f in enumerate(("jp2k", "jpeg", "wn", "gblur", "fastfading"))
        },
    ),
    "livec": (
        "LIVEChallenge",
        ["img_name", "mos", "std", *RATIO],
        [
            ["t1.bmp", 60, 18, "train", *["val"] * 9],
            *[
                [f"{k}.bmp", 30.5 + k, 17.5, ("train", "val")[k % 2], *["val"] * 9]
                for k in range(10, 14)
            ],
        ],
        "Images",
        {
            f"{k}.bmp": (30.5 + k, ("train", "test")[k % 2], None, 17.5 / math.sqrt(175))
            for k in range(10, 14)
        },
    ),
    "csiq": (
        "CSIQ",
        ["ref_name", "dist_name", "dmos", *RATIO],
        [
            ["1600.png", f"1600.{kind}.1.png", 0.25, split, *["val"] * 9]
            for kind, split in (("AWGN", "train"), ("jpeg2000", "val"))
        ],
        "dst_imgs",
        {
            "1600.AWGN.1.png": (0.25, "train", "1600", None),
            "1600.jpeg2000.1.png": (0.25, "test", "1600", None),
        },
    ),
}


def found(data):
    return {
        r.name: (r.score, r.split, r.group, r.error and pytest.approx(r.error))
        for r in data.records
    }


@pytest.mark.parametrize("beside", ["meta_info", "../meta_info", "."])
@pytest.mark.parametrize("name", PYIQA)
def test_the_tables_of_pyiqas_collection(tmp_path, name, beside):
    table, header, rows, folder, expected = PYIQA[name]
    root = tmp_path / "datasets" / "the_set"
    write_table(root / beside / f"meta_info_{table}Dataset.csv", header, rows)
    for image in expected:
        write_images((root / folder / image).parent, [image.rpartition("/")[2]], (8, 6))
    data = READERS[name](root).read(
        ("train", "val", "test") if name == "koniq-10k" else ("train", "test")
    )
    assert found(data) == expected
    (note,) = [note for note in data.notes if "read from" in note]
    said, _, path = note.partition(" read from ")
    assert said == f"{name}:" and Path(path).samefile(
        root / beside / f"meta_info_{table}Dataset.csv"
    )
    assert data.name == ("spaq-official" if name == "spaq" else name)


@pytest.mark.parametrize("name", ["tid2013", "koniq-10k"])
def test_a_given_split_that_tears_contents_apart_is_accepted_and_said(tmp_path, name):
    table, header, rows, folder, expected = PYIQA[name]
    write_table(tmp_path / f"meta_info_{table}Dataset.csv", header, rows)
    write_images(tmp_path / folder, list(expected), (8, 6))
    data = READERS[name](tmp_path).read()
    said = "tid2013: its own split has 1 of 1 training content on the other side too"
    assert (said in data.notes) == (name == "tid2013")


# What Q-Align's test_jsons/live.json holds: all 982 images, the undistorted ones with 0.
def write_live_list(root, references=True):
    """The release of LIVE without its scores, which a list gives instead."""
    images = write_live(root / "live")
    scores = {image: score + 20 for image, (score, _, _) in images.items()}
    entries = [{"image": f"live/{image}", "gt_score": score} for image, score in scores.items()]
    entries.append({"image": "live/wn/img174.bmp", "gt_score": 0.0})
    write_dir(root / "test_jsons")
    (root / "test_jsons" / "live.json").write_text(json.dumps(entries))
    (root / "live" / "dmos_realigned.mat").unlink()
    if not references:
        (root / "live" / "refnames_all.mat").unlink()
    return {image: reference for image, (_, reference, _) in images.items()}


def test_lives_references_come_from_the_release_where_the_list_has_none(tmp_path):
    references = write_live_list(tmp_path)
    data = READERS["live"](tmp_path).read()
    assert {r.name: r.group for r in data.records} == references
    train, test = ({r.group for r in data.split(split)} for split in ("train", "test"))
    assert (len(train), len(test)) == (23, 6) and not train & test
    assert "random 80/20 split of 29 reference contents, seed 42" in data.notes[-1]
    # All images to test on need no contents: the fingerprint is what it was.
    assert {r.group for r in READERS["live"](tmp_path).read_all_as_test().records} == {None}


def test_a_random_split_that_would_tear_unknown_contents_apart_is_refused(tmp_path):
    references = write_live_list(tmp_path, references=False)
    reader = READERS["live"](tmp_path)
    assert len(reader.read_for_test()[0].records) == 779
    with pytest.raises(
        UserError,
        match="live: which of 779 images share content is not known, and "
        ".*; expected refnames_all.mat .*; --allow_shared_content splits",
    ):
        reader.read()
    reader.allow_shared_content = True
    data = reader.read()
    train, test = ({references[r.name] for r in data.split(split)} for split in ("train", "test"))
    assert len(train & test) == 29
    assert "random 80/20 split of 779 images, not of contents, seed 42" in data.notes[-1]
    # Which is the split of older versions, also where the references are at hand.
    write_live_list(tmp_path)
    reader = READERS["live"](tmp_path)
    reader.allow_shared_content = True
    assert reader.read().fingerprint() == data.fingerprint() == "d8ae0bd9ce4e3912"


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
def test_agiqa_lists_are_split_by_prompt(tmp_path, split, numbered):
    """The lists name no prompts; the names of the images end in their numbers."""
    makers = ("AttnGAN_normal", "sd1.5_lowcorr", "xl2.2_normal")
    stems = [f"{maker}_{prompt:03}" for prompt in range(10) for maker in makers]
    names = [f"{stem if numbered else stem[::-1]}.jpg" for stem in stems]
    write_images(tmp_path / "AGIQA3K" / "images", names, (8, 6))
    parts = {"train": names[:20], "test": names[20:]} if split else {"test": names}
    write_dir(tmp_path / "AGIQA3K" / "metas")
    for part, listed in parts.items():
        entries = [{"image": f"AGIQA3K/images/{n}", "gt_score": len(n) + 0.5} for n in listed]
        (tmp_path / "AGIQA3K" / "metas" / f"{part}_agi.json").write_text(json.dumps(entries))
    reader = READERS["agiqa-3k"](tmp_path / "AGIQA3K")
    if split:
        data = reader.read()
        said = "agiqa-3k: its own split has 1 of 7 training contents on the other side too"
        assert (said in data.notes) == numbered and {r.group for r in data.records} == {None}
    if numbered:
        data = READERS["agiqa-3k"](tmp_path / "AGIQA3K").read(held_out=True)
        if split:
            take_validation(data, 0.3, 1)
        groups = [{r.group for r in data.split(part)} for part in ("train", "val", "test")]
        assert not groups[0] & groups[1] and (split or not groups[0] & groups[2])
        assert {r.group for r in data.records} == {f"{prompt:03}" for prompt in range(10)}
    else:
        with pytest.raises(UserError, match="which of 30 images share content is not known"):
            reader.read(held_out=True)


@pytest.mark.parametrize("wrong", [True, False])
def test_the_list_of_csiq_with_the_scores_of_the_noise_for_contrast_is_refused(tmp_path, wrong):
    """As Q-Align's test_jsons/csiq.json has them."""
    scores = {f"{r}.AWGN.{k}": k / 10 for r in ("1600", "elk", "foxy") for k in range(1, 5)}
    contrast = {name.replace("AWGN", "contrast"): score for name, score in scores.items()}
    if not wrong:
        contrast["foxy.contrast.4"] = 0.55
    entries = []
    for name, score in (scores | contrast).items():
        folder = name.split(".")[1].lower()
        write_images(tmp_path / "csiq" / "dst_imgs" / folder, [f"{name}.png"], (8, 6))
        entries.append({"image": f"csiq/dst_imgs/{folder}/{name}.png", "gt_score": score})
    write_dir(tmp_path / "test_jsons")
    (tmp_path / "test_jsons" / "csiq.json").write_text(json.dumps(entries))
    if wrong:
        with pytest.raises(
            UserError,
            match="csiq: the list in .* gives all 12 contrast images the "
            "scores of the noise images; expected csiq.DMOS.xlsx or pyiqa's table",
        ):
            READERS["csiq"](tmp_path).read_all_as_test()
    else:
        assert len(READERS["csiq"](tmp_path).read_all_as_test().records) == 24


@pytest.mark.parametrize("votes", ["x", "", "-3", "0", "nan", "inf"])
def test_a_count_of_votes_that_is_none_leaves_the_error_unknown(tmp_path, votes):
    table, header, rows, folder, expected = PYIQA["koniq-10k"]
    rows = [*rows[:-1], [*rows[-1][:-1], votes]]
    write_table(tmp_path / f"meta_info_{table}Dataset.csv", header, rows)
    write_images(tmp_path / folder, list(expected), (8, 6))
    errors = [r.error for r in READERS["koniq-10k"](tmp_path).read_all_as_test().records]
    assert errors == [
        *(pytest.approx(error) for _, _, _, error in list(expected.values())[:-1]),
        None,
    ]


def test_a_sets_own_files_go_before_a_collections(tmp_path):
    table, header, rows, folder, _ = PYIQA["kadid-10k"]
    write_table(tmp_path / "meta_info" / f"meta_info_{table}Dataset.csv", header, rows)
    write_images(tmp_path / "images", ["I01_01_01.png", "I02_01_01.png"], (8, 6))
    lines = [
        "dist_img,ref_img,dmos,var",
        "I01_01_01.png,I01.png,1.5,0.6",
        "I02_01_01.png,I02.png,2.5,0.9",
    ]
    (tmp_path / "dmos.csv").write_text("\n".join(lines))
    data = READERS["kadid-10k"](tmp_path).read()
    assert {r.name: r.error for r in data.records} == pytest.approx(
        {"I01_01_01.png": 0.6 / math.sqrt(30), "I02_01_01.png": 0.9 / math.sqrt(30)}
    )


DEQA = {
    "koniq-10k": ("KONIQ", "images/{}.jpg", ["1", "2", "3"]),
    "spaq": ("SPAQ", "images/{}.jpg", ["00001", "00002", "00003"]),
    "kadid-10k": ("KADID10K", "images/{}.png", ["I01_01_01", "I02_01_01", "I03_01_01"]),
    "livec": ("LIVE-WILD", "images/{}.bmp", ["10", "11", "12"]),
    "agiqa-3k": ("AGIQA3K", "images/{}.jpg", ["a", "b", "c"]),
    "tid2013": ("TID2013", "images/distorted_images/{}.bmp", ["I01_01_1", "I02_01_1", "I03_01_1"]),
    "csiq": ("CSIQ", "images/dst_imgs/awgn/{}.png", ["1600.AWGN.1", "elk.AWGN.1", "swarm.AWGN.1"]),
}


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("name", DEQA)
def test_the_lists_of_deqa_score(tmp_path, name, both):
    """With a training list its split; test images alone are drawn, or all of them tested on."""
    folder, image, stems = DEQA[name]
    lists = {"train": stems[:2], "test": stems[2:]} if both else {"test": stems}
    scores = {stem: 1.25 + k for k, stem in enumerate(stems)}
    for part, own in lists.items():
        entries = []
        for stem in own:
            path = f"{folder}/{image.format(stem)}"
            write_images((tmp_path / path).parent, [path.rpartition("/")[2]], (8, 6))
            about = {
                "id": f"{path.rpartition('/')[2]}->{scores[stem]}",
                "image": path,
                "gt_score": scores[stem],
            }
            entries.append(about | {"gt_score_norm": 1.0, "std": 0.5, "std_norm": 0.5})
        write_dir(tmp_path / folder / "metas")
        (tmp_path / folder / "metas" / f"{part}_x_{len(own)}k.json").write_text(json.dumps(entries))
    reader = READERS[name](tmp_path / folder)
    data = reader.read() if both else reader.read_for_test("all")[0]
    assert {r.path.stem: r.score for r in data.records} == scores
    if both:
        assert {r.path.stem for r in data.split("test")} == {stems[2]}
    if name == "koniq-10k":
        assert data.range == (1, 5)  # as the scores say; its own files' are 0..100
    votes = {"kadid-10k": 30, "livec": 175, "agiqa-3k": 21, "tid2013": 1, "spaq": 15}.get(name)
    # The deviation needs no number of votes, but TID2013's are standard errors.
    assert [r.deviation for r in data.records] == [None if name == "tid2013" else 0.5] * 3
    assert [r.error for r in data.records] == [votes and pytest.approx(0.5 / math.sqrt(votes))] * 3


def test_the_lists_of_q_align(tmp_path):
    """Scores in `id` alone, as `gt_score`, or as text; paths as `image` or `img_path`."""
    lists = {
        "training_sft/train_koniq.json": [
            {"id": f"{k}.jpg->{70.5 + k}", "image": f"koniq/{k}.jpg", "conversations": []}
            for k in (1, 2)
        ],
        "test_jsons/test_koniq.json": [
            {"id": "3.jpg->73.5", "image": "koniq/3.jpg", "gt_score": 73.5}
        ],
        "test_jsons/livec.json": [
            {"img_path": f"livec/{name}.bmp", "gt_score": s}
            for name, s in (("t1", 60.0), ("9", 61.0), ("10", 62.0))
        ],
        "test_jsons/agi.json": [
            {"img_path": f"agi-cgi/{k}.jpg", "gt_score": f"{k}.5"} for k in range(3)
        ],
        "test_jsons/live.json": [
            {"image": f"live/jp2k/img{k}.bmp", "gt_score": 28.0 * (k > 1)} for k in range(1, 4)
        ],
    }
    for name, entries in lists.items():
        write_dir((tmp_path / name).parent)
        (tmp_path / name).write_text(json.dumps(entries))
        for entry in entries:
            place = tmp_path / entry.get("image", entry.get("img_path"))
            write_images(place.parent, [place.name], (8, 6))
    koniq = READERS["koniq-10k"](tmp_path).read()
    assert {(r.name, r.score, r.split) for r in koniq.records} == {
        ("1.jpg", 71.5, "train"),
        ("2.jpg", 72.5, "train"),
        ("3.jpg", 73.5, "test"),
    }
    for name, expected in (
        ("livec", {"9.bmp": 61.0, "10.bmp": 62.0}),
        ("agiqa-3k", {"0.jpg": 0.5, "1.jpg": 1.5, "2.jpg": 2.5}),
        ("live", {"jp2k/img2.bmp": 28.0, "jp2k/img3.bmp": 28.0}),
    ):
        assert {
            r.name: r.score for r in READERS[name](tmp_path).read_all_as_test().records
        } == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{}]", "expected a JSON list of"),
        ('[{"image": "a.jpg", "gt_score": "x"}]', "1 score is not a number: a.jpg"),
        ("{", "expected a JSON list"),
        (
            '[{"image": "../../secret.jpg", "gt_score": 1}]',
            "1 image name leaves .*: ../../secret.jpg",
        ),
        (
            '[{"image": "/etc/secret.jpg", "gt_score": 1}]',
            "1 image name leaves .*: /etc/secret.jpg",
        ),
    ],
)
def test_broken_lists_are_one_line(tmp_path, content, said):
    write_dir(tmp_path / "metas")
    (tmp_path / "metas" / "test_koniq_2k.json").write_text(content)
    with pytest.raises(UserError, match=said):
        READERS["koniq-10k"](tmp_path).read_all_as_test()


@pytest.mark.parametrize("place", ["", "database/"])
def test_flive(tmp_path, place):
    images = [
        "voc_emotic_ava/AVA__1.jpg",
        "voc_emotic_ava/EMOTIC__2.jpg",
        "blur_dataset/motion0044.jpg",
        "EE371R/cj23478.jpg",
    ]
    for image in images:
        write_images((tmp_path / place / image).parent, [image.rpartition("/")[2]], (8, 6))
    write_table(
        tmp_path / place / "labels_image.csv",
        ["name", "mos"],
        [[image, 60.5 + k] for k, image in enumerate(images)],
    )
    names = {r.name: r.score for r in READERS["flive"](tmp_path).read_all_as_test().records}
    assert names == {image: 60.5 + k for k, image in enumerate(images)}
    header = ["mos_patch_1", "name_patch", "mos_image", "name_image", "width_image"]
    write_table(
        tmp_path / place / "labels640.csv", header, [[70, "patches/x", 60.5, images[0], 1200]]
    )
    padded = [
        [70, "patches/x", 60.5, images[1], 640, "True"],
        [70, "patches/x", 60.5, images[2], 640, "False"],
    ]
    write_table(tmp_path / place / "labels=640_padded.csv", [*header, "is_valid"], padded)
    data = READERS["flive"](tmp_path).read(("train", "val", "test"))
    assert [r.split for r in data.records] == ["test", "val", "train", "train"]


def test_uhd_iqa_and_its_challenge(tmp_path):
    header = ["image_name", "quality_mos", "set", "orig_width", "page_url"]
    rows = [
        [f"{k}.jpg", 0.5 + k / 10, part, 5515, "https://x"]
        for k, part in enumerate(("training", "training", "validation", "test"))
    ]
    for name, _, part, *_ in rows:
        write_images(tmp_path / "all" / part, [name], (8, 6))
        write_images(tmp_path / "challenge" / "training", [name], (8, 6))
    write_table(tmp_path / "all" / "uhd-iqa-metadata.csv", header, rows)
    data = READERS["uhd-iqa"](tmp_path / "all").read(("train", "val", "test"))
    assert [(r.name, r.split) for r in data.records] == [
        ("training/0.jpg", "train"),
        ("training/1.jpg", "train"),
        ("validation/2.jpg", "val"),
        ("test/3.jpg", "test"),
    ]
    alone = [[*row[:2], "training", *row[3:]] for row in rows]
    write_table(tmp_path / "challenge" / "uhd-iqa-training-metadata.csv", header, alone)
    data = READERS["uhd-iqa"](tmp_path / "challenge").read()
    assert (
        len(data.records) == 4
        and "random 80/20 split of 4 images" in data.notes[0]
        and data.range == (0, 1)
    )


@pytest.mark.parametrize("form", ["csv", "xlsx"])
@pytest.mark.parametrize("official", [True, False])
def test_agiqa_20k(tmp_path, form, official):
    """The challenge's tables have scores for training alone; a prompt may hold commas and quotes."""
    rows = {
        p: [[f"{p}_{k}.png", f'A "{k % 2}", cyberpunk', 3.5 + k / 8] for k in range(4)]
        for p in ("train", "val", "test")
    }
    for part, own in rows.items():
        write_images(tmp_path / part, [row[0] for row in own], (8, 6))
        scored = official or part == "train"
        header, own = (
            ["name", "prompt", *["mos"] * scored],
            [row if scored else row[:2] for row in own],
        )
        if form == "csv":
            write_table(tmp_path / f"info_{part}.csv", header, own)
        else:
            write_book(tmp_path / f"info_{part}.xlsx", Sheet1=[header, *own])
    data = READERS["agiqa-20k"](tmp_path).read()
    assert data.records[0].group == 'A "0", cyberpunk'
    if official:
        assert [len(data.split(part)) for part in ("train", "test")] == [4, 4]
    else:
        assert (
            len(data.records) == 4 and "random 80/20 split of 2 reference contents" in data.notes[0]
        )


def test_votes_of_the_releases(tmp_path):
    """LIVE Challenge: SD of 175 opinions; TID2013: standard errors, in the order of the scores; AGIQA-3K: SD of 21."""
    root = write_dir(tmp_path / "livec" / "Data").parent
    write_images(root / "Images", ["1.bmp", "2.bmp"], (8, 6))
    for what, values in (
        ("Images", cells(["t1.bmp", "1.bmp", "2.bmp"])),
        ("MOS", np.array([[5, 50, 60]])),
        ("StdDev", np.array([[9, 17.5, 19]])),
    ):
        scipy.io.savemat(root / "Data" / f"All{what}_release.mat", {f"All{what}_release": values})
    errors = [r.error for r in READERS["livec"](root).read_all_as_test().records]
    assert errors == pytest.approx([17.5 / 175**0.5, 19 / 175**0.5])

    root = write_dir(tmp_path / "tid")
    write_images(root / "distorted_images", ["I01_01_1.bmp", "I02_01_1.bmp"], (8, 6))
    (root / "mos_with_names.txt").write_text("5.5 I01_01_1.bmp\n4.5 I02_01_1.bmp\n")
    (root / "mos_std.txt").write_text("0.125\n0.25\n")
    assert [r.error for r in READERS["tid2013"](root).read_all_as_test().records] == [0.125, 0.25]
    (root / "mos_std.txt").write_text("0.125\n")
    with pytest.raises(UserError, match="must be of one length"):
        READERS["tid2013"](root).read_all_as_test()

    root = tmp_path / "agiqa"
    write_table(
        root / "data.csv",
        ["name", "prompt", "mos_quality", "std_quality"],
        [["a.jpg", "x", 2.5, 0.7]],
    )
    write_images(root, ["a.jpg"], (8, 6))
    assert READERS["agiqa-3k"](root).read_all_as_test().records[0].error == pytest.approx(
        0.7 / 21**0.5
    )
