"""Where a model's figures come from: the certificate in the description of every best model.

It says what made the model (command, seeds, code, versions, hardware) and on what: the digest of
every set's records and of their decoded pixels, and where the split came from. It also holds the
rule by which the model was chosen, its figures with intervals, and what it started from.
`certify.py` checks it. The seal shows edits, but it is no signature: anybody can compute a new one.
"""

import base64
import functools
import hashlib
import json
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base import device, files, version
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.model.checkpoints import digest, find_model, load_model
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.training import batches, processes
from hyperiqa.training.run_files import Prediction

# The format of the certificate; `certify.py` refuses any other.
FORMAT = 1

# Draws of the bootstrap for the intervals of the figures.
RESAMPLES = 1000


def json_digest(content: object) -> str:
    """16 hex digits that change when anything in the content does."""
    text = json.dumps(to_json_value(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_version() -> dict[str, Any]:
    """The digest of this program's own files, the versions, and the commit.

    `changed` says whether files were changed since the commit (None: no checkout).
    """
    paths = list((files.CHECKOUT / "hyperiqa").rglob("*.py"))
    # The folder of an installed package holds other projects' files too.
    if files.IS_CHECKOUT:
        paths += files.CHECKOUT.glob("*.py")
    sources = [
        [path.relative_to(files.CHECKOUT).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(paths)
    ]
    status = version.git("status", "--porcelain", "--untracked-files=no")
    return {
        "sources": json_digest(sources),
        "changed": None if status is None else bool(status),
        **version.versions(),
    }


def seal_of(description: Mapping[str, Any]) -> str:
    """The digest of a description without its seal and what saving and loading add."""
    facts = {name: fact for name, fact in description["certificate"].items() if name != "seal"}
    parts = {
        name: part for name, part in description.items() if name not in ("described", "format")
    }
    return json_digest({**parts, "certificate": facts})


def pixels_digest(images: batches.DecodedSet) -> str:
    """Changes when a pixel of the set's images does, as decoded and before they were resized."""
    return json_digest(
        sorted((record.name, images.digest(record)) for record in images.data.records)
    )


def predictions_digest(rows: Iterable[Prediction]) -> str:
    """Changes when a row does. The digest of the run's rows is that of the file with them."""
    # A file gives floats where the run may have NumPy's; `repr` keeps every digit.
    return json_digest(
        [
            [dataset, image, repr(float(mos)), repr(float(score))]
            for dataset, image, mos, score in rows
        ]
    )


def figures_with_intervals(
    tested: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, dict[str, list[float]]]:
    """Each part's figures as [value, low, high], with 95 % bootstrap intervals over its images.

    tested: part -> (scores, MOS), both (N,).
    """
    figures: dict[str, dict[str, list[float]]] = {}
    for part, (scores, mos) in tested.items():
        figures[part] = {}
        for name in metrics.RECORDED:
            draws = resampling.bootstrap(name, scores, mos, RESAMPLES)[:, 0]
            value = metrics.FIGURES[name].of(scores, mos)
            figures[part][name] = [value, *intervals.percentile_interval(draws)]
    return figures


def pack_hashes(rows: Sequence[tuple[str, str]]) -> str:
    """Pack the names and perceptual hashes of images into text a third as long."""
    return base64.b85encode(zlib.compress(json.dumps(rows).encode(), 9)).decode()


def unpack_hashes(text: str) -> list[tuple[str, str]]:
    return json.loads(zlib.decompress(base64.b85decode(text)))


def training_hashes(description: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(names, perceptual hashes) of the images that the model was trained on.

    Both are empty where the description does not tell.
    """
    names = []
    hashes = []
    for set_name, facts in description.get("certificate", {}).get("sets", {}).items():
        for image, image_hash in unpack_hashes(facts["looks"]):
            names.append(f"{set_name} {image}")
            hashes.append(image_hash)
    return names, hashes


def describe_sets(data: Any) -> dict[str, dict[str, Any]]:
    """What the certificate says of each set of a `RunData`.

    Its records and pixels, where its split came from, and the hashes of the images it trained on.
    """
    options = data.options
    cross_test = options.cross_test or dict.fromkeys(data.cross)
    # Records call a set NAME that a flag calls csv:NAME; the order is the same.
    flags = dict(zip([*data.trained, *data.cross], {**options.trained, **cross_test}.items()))
    sets: dict[str, dict[str, Any]] = {}
    for part, (images, _) in data.tests.items():
        name = part if part in data.cross else images.data.name
        # Validation and test images belong to one set.
        if name in sets:
            continue
        flag, path = flags[name]
        training_records = images.data.split("train") if name in data.trained else []
        splits = {split: len(images.data.split(split)) for split in ("train", "val", "test")}
        sets[name] = {
            "flag": flag,
            "path": to_json_value(path),
            "trained": name in data.trained,
            "images": {split: count for split, count in splits.items() if count},
            "records": images.data.fingerprint(),
            "pixels": pixels_digest(images),
            "notes": list(images.data.notes),
            "looks": pack_hashes(
                [(record.name, images.perceptual_hash(record)) for record in training_records]
            ),
        }
    return sets


def describe_round(
    options: Namespace,
    hardware: device.Hardware,
    sets: Mapping[str, Any],
    starts: Mapping[str, Any],
) -> dict[str, Any]:
    """What the certificates of all models of a round share.

    sets: from `describe_sets`. starts: "init" and "teacher" -> `starts.StartingModel` or None.
    """
    return {
        "format": FORMAT,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": options.seed,
        "code": code_version(),
        "hardware": {
            "device": hardware.name,
            "precision": "bf16" if hardware.bf16 else "fp32",
            "threads": torch.get_num_threads(),
            "processes": processes.world_size(),
        },
        "rule": {
            "select_on": options.select_on,
            "select_set": options.select_set,
            "patience": options.early_stopping and options.patience,
        },
        "sets": dict(sets),
        "starts": _describe_starts(options, starts),
        "resamples": RESAMPLES,
    }


def _describe_starts(options: Namespace, starts: Mapping[str, Any]) -> dict[str, dict]:
    described: dict[str, dict] = {}
    for flag, model in starts.items():
        if model:
            described[flag] = {
                "file": str(model.path),
                "weights": model.digest,
                "starts": model.description.get("certificate", {}).get("starts", {}),
            }
    if options.backbone_weights:
        described["backbone_weights"] = {
            "file": str(options.backbone_weights),
            "weights": weights_of("backbone_weights", options.backbone_weights),
            "starts": {},
        }
    return described


def sealed(description: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The description with its certificate completed and sealed.

    run: what the run knows of this model alone: round, epoch, figures, digests.
    """
    description = {**description, "certificate": {**description["certificate"], **run}}
    description["certificate"]["seal"] = seal_of(description)
    return description


def weights_of(flag: str, path: Path) -> str:
    """The digest of the weights that a run started from with this flag. Raises UserError."""
    file = find_model(path)
    # A backbone's file may be torchvision's or timm's, which `load_model` does not read.
    if flag == "backbone_weights":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return digest(load_model(file)[0])
