"""Where a model's figures come from: the certificate in the description of every best model.

It says what made the model (command, seeds, code, versions, hardware) and on what: the digest of
every set's records and of their decoded pixels, and where the split came from. It also holds the
rule by which the model was chosen, its figures with intervals, and what it started from.
`certify.py` checks it. The seal shows edits, but it is no signature: anybody can compute a new one.
"""

import base64
import contextlib
import functools
import hashlib
import json
import re
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base import device, errors, files, plain_values, version
from hyperiqa.model import checkpoints, description as descriptions
from hyperiqa.stats import intervals, metrics, resampling
from hyperiqa.training import batches, processes, run_files

# The flags with the weights that a run starts from or learns from.
STARTS = ("init", "teacher", "backbone_weights")

# Fields of a description that its seal leaves out. Saving and loading add the first two. The
# certificate has a digest of the calibration that the run wrote, which another one may replace.
UNSEALED = ("described", "format", "calibration")

# Draws of the bootstrap for the intervals of the figures.
RESAMPLES = 1000

# The most that the packed hashes of a set may unpack to: those of some two million images.
MOST_HASHES_BYTES = 2**27
# Unpacked: the name and the hash of each image as JSON; an empty hash is unknown. Nothing in it is
# tried in more than one way (`*+`), so that a long text takes no more time or memory than it must.
HASHES = re.compile(rb'\[(?:\["(?:[^"\\]|\\.)*+", "(?:[0-9a-f]{16})?"\](?:, )?)*+\]')


def json_digest(content: object) -> str:
    """16 hex digits that change when anything in the content does."""
    text = json.dumps(plain_values.to_json_value(content), sort_keys=True)
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
    """The digest of a description, without its seal and the fields in `UNSEALED`."""
    facts = {name: fact for name, fact in description["certificate"].items() if name != "seal"}
    parts = {name: part for name, part in description.items() if name not in UNSEALED}
    return json_digest({**parts, "certificate": facts})


def pixels_digest(images: batches.DecodedSet) -> str:
    """A digest of the set's pixels, as decoded and before they are resized."""
    return json_digest(
        sorted((record.name, images.digest(record)) for record in images.data.records)
    )


def predictions_digest(rows: Iterable[run_files.Prediction]) -> str:
    """A digest of predictions; rows of a run and rows read from its file have the same one."""
    # A run may have NumPy's numbers and a file gives floats; `repr` keeps every digit.
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


def unpack_hashes(name: str, facts: Mapping[str, Any]) -> list[list[str]]:
    """The names and perceptual hashes of the images of a set that a model was trained on.

    name, facts: a set of a certificate. Raises UserError if its hashes are damaged or their number
    is not the number of images.
    """
    number = facts["images"].get("train", 0) if facts["trained"] else 0
    rows = None
    # Damaged text cannot be unpacked and leaves no rows.
    with contextlib.suppress(ValueError, zlib.error):
        content = zlib.decompressobj().decompress(
            base64.b85decode(facts["looks"]), MOST_HASHES_BYTES
        )
        rows = json.loads(content) if HASHES.fullmatch(content) else None
    if rows is None or len(rows) != number:
        raise errors.UserError(
            f"the certificate is damaged: sets.{name}.looks: "
            f"expected the packed names and hashes of {errors.counted(number, 'image')}"
        )
    return rows


def training_hashes(description: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(names, perceptual hashes) of the images that the model was trained on.

    Both are empty if the description does not tell.
    """
    names = []
    hashes = []
    for set_name, facts in descriptions.certificate_of(description).get("sets", {}).items():
        for image, image_hash in unpack_hashes(set_name, facts):
            names.append(f"{set_name} {image}")
            hashes.append(image_hash)
    return names, hashes


def describe_sets(data: Any) -> dict[str, dict[str, Any]]:
    """The facts about each set of a `RunData` in the certificate.

    They are the digests of its records and pixels, the origin of its split, and the hashes of its
    training images.
    """
    options = data.options
    cross_test = options.cross_test or dict.fromkeys(data.cross)
    # A set is csv:NAME in a flag and NAME in records; the order is the same.
    names = [*data.trained, *data.cross]
    flags = dict(zip(names, {**options.trained, **cross_test}.items(), strict=True))
    sets: dict[str, dict[str, Any]] = {}
    for part, (images, _) in data.tests.items():
        name = part if part in data.cross else images.data.name
        # Validation and test images belong to one set.
        if name in sets:
            continue
        flag, path = flags[name]
        sets[name] = {
            "flag": flag,
            "path": plain_values.to_json_value(path),
            **describe_set(images, name in data.trained),
        }
    return sets


def describe_set(images: batches.DecodedSet, trained: bool) -> dict[str, Any]:
    """The facts about a set that do not depend on its path. trained: whether it was trained on."""
    data = images.data
    training_records = data.split("train") if trained else []
    splits = {split: len(data.split(split)) for split in ("train", "val", "test")}
    return {
        "trained": trained,
        "images": {split: count for split, count in splits.items() if count},
        "records": data.fingerprint(),
        "pixels": pixels_digest(images),
        "notes": list(data.notes),
        "looks": pack_hashes(
            [(record.name, images.perceptual_hash(record)) for record in training_records]
        ),
    }


def describe_rule(options: Namespace) -> dict[str, Any]:
    """How the best epoch is chosen, and when the run stops early."""
    return {
        "select_on": options.select_on,
        "select_set": options.select_set,
        "patience": options.early_stopping and options.patience,
    }


def describe_round(
    options: Namespace,
    hardware: device.Hardware,
    data: Any,
    starts: Mapping[str, Any],
) -> dict[str, Any]:
    """The part of a certificate that all models of a round share.

    data: the run's `RunData`. starts: "init" and "teacher" -> `starts.StartingModel` or None.
    """
    return {
        "format": descriptions.CERTIFICATE_FORMAT,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": options.seed,
        "code": code_version(),
        "hardware": {
            "device": hardware.name,
            "precision": "bf16" if hardware.bf16 else "fp32",
            "threads": torch.get_num_threads(),
            "processes": processes.world_size(),
        },
        "rule": describe_rule(options),
        "sets": describe_sets(data),
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
                "starts": descriptions.certificate_of(model.description).get("starts", {}),
            }
    if options.backbone_weights:
        # The downloaded file itself, as a name on the Hub may later mean another one.
        file = checkpoints.find_model(options.backbone_weights)
        described["backbone_weights"] = {
            "file": str(file),
            "weights": weights_of("backbone_weights", file),
            "starts": {},
        }
    return described


def sealed(description: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The description with its certificate completed and sealed.

    run: the facts about this model alone: round, epoch, figures, digests.
    """
    facts = {
        **description["certificate"],
        **run,
        "calibration": json_digest(description.get("calibration", {})),
    }
    facts["seal"] = seal_of({**description, "certificate": facts})
    return {**description, "certificate": facts}


def weights_of(flag: str, path: Path) -> str:
    """The digest of the weights that a run started from with this flag.

    path: as a certificate names it. Raises UserError.
    """
    if files.known_place(path) is None:
        raise errors.UserError(f"{path}: no file or folder of models is there")
    file = checkpoints.find_model(path)
    # A backbone's file may be torchvision's or timm's, which `load_model` does not read.
    if flag == "backbone_weights":
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return checkpoints.digest(checkpoints.load_model(file)[0])
