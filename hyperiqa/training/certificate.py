"""Where a model's figures come from: the certificate in the description of every best model.

It says what made the model (command, seeds, code, versions, hardware), on what (the digest of every set's records and
of their decoded pixels, and where the split came from), by what rule it was chosen, its figures with intervals, and
what it started from. `certify.py` checks it. Its seal shows edits; it is no signature: who makes a new one is not
found out."""

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

from hyperiqa.base.device import Hardware
from hyperiqa.base.files import CHECKOUT, IS_CHECKOUT
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.base.version import git, versions
from hyperiqa.model.checkpoints import digest, find_model, load_model
from hyperiqa.stats import intervals, resampling
from hyperiqa.stats.metrics import FIGURES, RECORDED
from hyperiqa.training import processes
from hyperiqa.training.batches import DecodedSet
from hyperiqa.training.run_files import Prediction

FORMAT, RESAMPLES = 1, 1000


def json_digest(content: object) -> str:
    return hashlib.sha256(json.dumps(to_json_value(content), sort_keys=True).encode()).hexdigest()[
        :16
    ]


@functools.cache
def code_version() -> dict[str, Any]:
    """The digest of this program's own files, the commit, and whether files were changed since (None: no checkout)."""
    files = list((CHECKOUT / "hyperiqa").rglob("*.py"))
    if IS_CHECKOUT:  # the folder of an installed package holds other projects' files too
        files += CHECKOUT.glob("*.py")
    sources = [
        [path.relative_to(CHECKOUT).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(files)
    ]
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "sources": json_digest(sources),
        "changed": None if status is None else bool(status),
        **versions(),
    }


def seal_of(description: Mapping[str, Any]) -> str:
    """Changes when anything of a description does, but the seal itself and what loading adds."""
    kept = {
        name: value
        for name, value in description.items()
        if name not in ("described", "format", "certificate")
    }
    certificate = {
        name: value for name, value in description["certificate"].items() if name != "seal"
    }
    return json_digest({**kept, "certificate": certificate})


def pixels_digest(images: DecodedSet) -> str:
    """Changes when a pixel of the set's images does, as decoded and before they were resized."""
    return json_digest(sorted((r.name, images.of("digests", r)) for r in images.data.records))


def predictions_digest(rows: Iterable[Prediction]) -> str:
    return json_digest(
        [
            [dataset, image, repr(float(mos)), repr(float(score))]
            for dataset, image, mos, score in rows
        ]
    )


def figures_with_intervals(
    tested: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, dict[str, list[float]]]:
    """Part -> (scores, MOS) to part -> figure -> [value, low, high], 95 % bootstrap over images."""
    found = {}
    for part, (scores, mos) in tested.items():
        draws = {
            name: resampling.bootstrap(name, scores, mos, RESAMPLES)[:, 0] for name in RECORDED
        }
        bounds = {name: intervals.percentile_interval(each) for name, each in draws.items()}
        found[part] = {name: [FIGURES[name].of(scores, mos), *bounds[name]] for name in RECORDED}
    return found


def pack_hashes(rows: Sequence[tuple[str, str]]) -> str:
    """Names and looks of images, as text a third as long."""
    return base64.b85encode(zlib.compress(json.dumps(rows).encode(), 9)).decode()


def unpack_hashes(text: str) -> list[tuple[str, str]]:
    return json.loads(zlib.decompress(base64.b85decode(text)))


def training_hashes(description: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(names, looks) of the images that the model was trained on, as far as its description says."""
    sets = description.get("certificate", {}).get("sets", {})
    rows = [
        (f"{name} {image}", look)
        for name, each in sets.items()
        for image, look in unpack_hashes(each["looks"])
    ]
    return [name for name, _ in rows], [look for _, look in rows]


def describe_sets(data: Any) -> dict[str, dict[str, Any]]:
    """Of every set of a `RunData`: its records and pixels, where its split came from, the looks of what it trained."""
    asked = {**data.options.trained, **(data.options.cross_test or dict.fromkeys(data.cross))}
    flags = dict(zip([*data.trained, *data.cross], asked.items()))
    found = {}
    for part, (images, _) in data.tests.items():
        name = part if part in data.cross else images.data.name
        if name in found:
            continue
        d, training = images.data, images.data.split("train") if name in data.trained else []
        counts = {
            split: len(d.split(split)) for split in ("train", "val", "test") if d.split(split)
        }
        found[name] = {
            "flag": flags[name][0],
            "path": to_json_value(flags[name][1]),
            "trained": name in data.trained,
            "images": counts,
            "records": d.fingerprint(),
            "pixels": pixels_digest(images),
            "notes": list(d.notes),
            "looks": pack_hashes([(r.name, images.of("hashes", r)) for r in training]),
        }
    return found


def describe_round(
    o: Namespace, hardware: Hardware, sets: Mapping[str, Any], starts: Mapping[str, Any]
) -> dict[str, Any]:
    """What of the certificate is the same for all models of a round. sets: `describe_sets`. starts: the `inference.Initial`
    of --init and --teacher."""
    known: dict[str, dict] = {}
    for how, each in starts.items():
        if each:  # with what that one started from
            before = each.description.get("certificate", {}).get("starts", {})
            known[how] = {"file": str(each.path), "weights": each.digest, "starts": before}
    if file := o.backbone_weights:
        known["backbone_weights"] = {
            "file": str(file),
            "weights": weights_of("backbone_weights", file),
            "starts": {},
        }
    rule = {
        "select_on": o.select_on,
        "select_set": o.select_set,
        "patience": o.early_stopping and o.patience,
    }
    machine = {
        "device": hardware.name,
        "precision": "bf16" if hardware.bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
    }
    return {
        "format": FORMAT,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": o.seed,
        "code": code_version(),
        "hardware": machine,
        "rule": rule,
        "sets": dict(sets),
        "starts": known,
        "resamples": RESAMPLES,
    }


def sealed(description: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The description, its certificate with what the run knows of this model (round, epoch, figures, digests)."""
    description = {**description, "certificate": {**description["certificate"], **run}}
    description["certificate"]["seal"] = seal_of(description)
    return description


def weights_of(how: str, path: Path) -> str:
    """The digest of what a run started from: of a model's weights, or of a file of a backbone's. Raises UserError."""
    model = find_model(path)
    return (
        digest(load_model(model)[0])
        if how != "backbone_weights"
        else hashlib.sha256(model.read_bytes()).hexdigest()
    )
