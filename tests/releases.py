"""Writers of the layouts that data sets are published in, with tiny images.

Each returns what a reader must make of it: image name -> (score, content group, kind of distortion).
"""

import csv
import json
from pathlib import Path

import numpy as np
import scipy.io
from helpers import cells, write_book, write_dir, write_images

Expected = dict[str, tuple[float, str | None, str | None]]


def write_kadid(root: Path, images: str = "images") -> Expected:
    kinds = {"01": "gaussian blur", "09": "JPEG2000 compression", "25": "contrast change"}
    expected = {
        f"I{content:02}_{kind}_0{level}.png": (5 - level - content / 100, f"I{content:02}", text)
        for content in range(1, 6)
        for kind, text in kinds.items()
        for level in (1, 3)
    }
    write_images(root / images, list(expected), (8, 6))
    lines = [f"{name},{group}.png,{score},0.5" for name, (score, group, _) in expected.items()]
    (root / "dmos.csv").write_text("dist_img,ref_img,dmos,var\r\n" + "\r\n".join(lines) + "\r\n")
    return expected


def write_kadid_json(root: Path) -> Expected:
    expected = write_kadid(root, "")
    (root / "dmos.csv").unlink()
    entries = [
        {"image": f"kadid_test/{name}", "score": score} for name, (score, _, _) in expected.items()
    ]
    (root / "kadid_test.json").write_text(json.dumps(entries))
    return expected


def write_agiqa(root: Path, images: str = "") -> Expected:
    prompts = ["a cat, oil painting", "a dog", "a house", "a tree", "the sea"]
    makers = ("AttnGAN_normal", "DALLE2")
    expected = {
        f"{maker}_{i:03}.jpg": (i / 2 + k, prompt, None)
        for i, prompt in enumerate(prompts)
        for k, maker in enumerate(makers)
    }
    write_images(root / images, list(expected), (8, 6))
    with (root / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            "name prompt adj1 adj2 style mos_quality std_quality mos_align std_align".split()
        )
        table.writerows(
            [n, prompt, "", "", "", mos, 0.1, 4.9, 0.2] for n, (mos, prompt, _) in expected.items()
        )
    return expected


def write_agiqa_json(root: Path) -> Expected:
    expected = write_agiqa(root, "images")
    entries = [{"image": name, "score": score} for name, (score, _, _) in expected.items()]
    (root / "agiqa_test.json").write_text(json.dumps(entries))
    return {name: (score, None, None) for name, (score, _, _) in expected.items()}


def write_livec(root: Path) -> Expected:
    shown = [f"t{i}.bmp" for i in range(1, 8)]
    names = ["3.bmp", "10.bmp", "t8.bmp", "1024.JPG", "1163.jpg"]
    write_images(root / "Images" / "trainingImages", shown, (8, 6))
    write_images(root / "Images", names, (8, 6))
    scores = np.array([[*range(7), 63.25, 50.0, 3.5, 92.0, 71.5]])
    write_dir(root / "Data")
    scipy.io.savemat(
        root / "Data" / "AllImages_release.mat", {"AllImages_release": cells(shown + names)}
    )
    scipy.io.savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": scores})
    return {name: (score, None, None) for name, score in zip(names, scores[0, 7:].tolist())}


def write_live(
    root: Path, file: str = "dmos_realigned.mat", variable: str = "dmos_new"
) -> Expected:
    kinds = {
        "jp2k": (227, "JPEG2000 compression"),
        "jpeg": (233, "JPEG compression"),
        "wn": (174, "white noise"),
        "gblur": (174, "gaussian blur"),
        "fastfading": (174, "fast fading"),
    }
    write_images(root / "refimgs", [f"scene{i}.bmp" for i in range(29)], (8, 6))
    bitmap = (root / "refimgs" / "scene0.bmp").read_bytes()
    dmos, undistorted, references, expected = [], [], [], {}
    for folder, (count, kind) in kinds.items():
        write_dir(root / folder)
        distorted = count - (29 if folder in ("wn", "gblur", "fastfading") else 58)
        for i in range(1, count + 1):
            score, reference = len(dmos) / 10, f"scene{i % 29}.bmp"
            dmos.append(score)
            references.append(reference)
            undistorted.append(i > distorted)
            if i <= distorted:
                (root / folder / f"img{i}.bmp").write_bytes(bitmap)
                expected[f"{folder}/img{i}.bmp"] = (score, reference, kind)
    scipy.io.savemat(root / file, {variable: np.array([dmos]), "orgs": np.array([undistorted])})
    scipy.io.savemat(root / "refnames_all.mat", {"refnames_all": cells(references).T})
    assert len(expected) == 779
    return expected


CSIQ_HEADER = ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]


def write_csiq(root: Path, header: list[str] = CSIQ_HEADER) -> Expected:
    kinds = {  # the sheet's name, the images' folder, the images' name
        "noise": ("awgn", "AWGN", "white noise"),
        "jpeg": ("jpeg", "JPEG", "JPEG compression"),
        "jpeg 2000": ("jpeg2000", "jpeg2000", "JPEG2000 compression"),
        "fnoise": ("fnoise", "fnoise", "pink noise"),
        "blur": ("blur", "BLUR", "gaussian blur"),
        "contrast": ("contrast", "contrast", "contrast decrease"),
    }
    rows, expected = [[], ["CSIQ"], [], [None, None, None, *header]], {}
    for image in (1600, "boston", "snow_leaves", "elk", "trolley"):
        for i, (kind, (folder, word, text)) in enumerate(kinds.items(), 1):
            for level in (1, 2):
                score = round(len(expected) / 60, 4)
                write_images(root / "dst_imgs" / folder, [f"{image}.{word}.{level}.png"], (8, 6))
                rows.append([None, None, None, image, i, kind, level, 0.05, score])
                expected[f"{image}.{word}.{level}.png"] = (score, str(image), text)
    write_book(root / "csiq.DMOS.xlsx", all_by_distortion=[["other"]], all_by_image=rows)
    return expected


def write_tid2013(root: Path) -> Expected:
    kinds = {
        1: "additive gaussian noise",
        8: "gaussian blur",
        24: "sparse sampling and reconstruction",
    }
    listed = {
        f"I{content:02}_{kind:02}_{level}.bmp": (9 - level - content / 10, f"I{content:02}", text)
        for content in range(1, 6)
        for kind, text in kinds.items()
        for level in (1, 5)
    }
    on_disk = {
        name: name.replace("I", "i").replace("bmp", "BMP") if i % 2 else name
        for i, name in enumerate(listed)
    }
    write_images(root / "distorted_images", list(on_disk.values()), (8, 6))
    in_list = [name.lower() if i % 3 else name for i, name in enumerate(listed)]
    lines = [f"{score:.5f} {name}" for name, (score, _, _) in zip(in_list, listed.values())]
    (root / "mos_with_names.txt").write_text("\r\n".join(lines) + "\r\n")
    return {on_disk[name]: expected for name, expected in listed.items()}


def write_bid(root: Path, images: str = "ImageDatabase") -> Expected:
    scores = {1: 3.25, 2: 0.5, 10: 5, 586: 4.125}
    names = {number: f"DatabaseImage{number:04}.JPG" for number in scores}
    write_images(root / images, list(names.values()), (8, 6))
    rows = [
        ["Image Number", "Average Subjective Grade", "Blur"],
        *([n, s, "motion"] for n, s in scores.items()),
    ]
    write_book(root / "DatabaseGrades.xlsx", Plan1=rows)
    return {names[number]: (score, None, None) for number, score in scores.items()}


def write_official_spaq(root: Path) -> Expected:
    names = [f"{i:05}.jpg" for i in range(1, 6)]
    expected = {name: (20.5 + 10 * i, None, None) for i, name in enumerate(names)}
    write_images(root / "TestImage", names, (8, 6))
    rows = [
        ["Image name", "MOS", "Brightness"],
        *([name, score, 50] for name, (score, _, _) in expected.items()),
    ]
    write_book(root / "Annotations" / "MOS and Image attribute scores.xlsx", Sheet1=rows)
    return expected


# data set and form -> writer, default resize, higher is better, contents, training images of the 80/20 split
RELEASES = {
    "kadid-10k": (write_kadid, "384", True, 5, 24),
    "kadid-10k JSON": (write_kadid_json, "384", True, 5, 24),
    "agiqa-3k": (write_agiqa, "384", True, 5, 8),
    "agiqa-3k JSON": (write_agiqa_json, "384", True, 5, 8),
    "livec": (write_livec, "none", True, None, 4),
    "live": (write_live, "none", False, 29, None),
    "live old scores": (lambda root: write_live(root, "dmos.mat", "dmos"), "none", False, 29, None),
    "csiq": (write_csiq, "none", False, 5, 48),
    "tid2013": (write_tid2013, "none", True, 5, 24),
    "bid": (write_bid, "512x512", True, None, 3),
    "bid flat": (lambda root: write_bid(root, ""), "512x512", True, None, 3),
    "spaq official": (write_official_spaq, "384", True, None, 4),
}
