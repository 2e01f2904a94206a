"""What the description of a model may hold, its certificate included.

A file may come from anywhere, and its description comes with it. Every field that some part of this
program reads is checked here for its kind and its range, before anything is built or allocated by
it. Other fields may hold any plain values. `training/certificate.py` says what the certificate
means.
"""

from collections.abc import Mapping
from typing import Any

from hyperiqa.base.schema import (
    FIGURE,
    PLAIN,
    TRUTH,
    Every,
    Fields,
    Kind,
    Schema,
    maybe,
    mismatch,
    number,
    one_of,
    plain,
    table,
    text,
    whole_number,
)

FORMAT = 1
# `certify.py` refuses any other.
CERTIFICATE_FORMAT = 1
# Pixels of all patches that an image is scored on: 1,000 patches of 224 x 224 are 50 million.
MOST_PATCH_PIXELS = 100_000_000
LONGEST_CHAIN = 50

NAME = text(longest=300)
SIZE = text(r"none|(max)?[1-9]\d{0,4}|[1-9]\d{0,4}x[1-9]\d{0,4}", "S, maxS, HxW or none")
DIGEST = text(r"[0-9a-f]{8,64}", "a digest of hexadecimal digits")
COUNT = whole_number(0, 1e12)
RANGE = Kind(
    "two numbers, the smaller first",
    lambda x: (
        isinstance(x, (list, tuple)) and len(x) == 2 and all(map(number().fits, x)) and x[0] <= x[1]
    ),
)
# Which CSV sets have scores that mean badness: all, none, or those of these names.
LOWER = Kind(
    "true, false or names",
    lambda x: isinstance(x, bool) or (isinstance(x, (list, tuple)) and all(map(NAME.fits, x))),
)
# Of a set of images: figure of merit -> its value, or its value and the bounds of its interval.
FIGURES = table(FIGURE)
INTERVALS = table(Every(FIGURE, 1, 3))
# A path or a name of a file, as long as systems allow.
PATH = text(longest=4096)

AMOUNT = number(-1e9, 1e9)
RISING = Kind(
    "101 numbers that do not fall",
    lambda x: (
        isinstance(x, (list, tuple))
        and len(x) == 101
        and all(map(AMOUNT.fits, x))
        and list(x) == sorted(x)
    ),
)
# An encoder's constructor takes plain values; which of them are handed on, `timm_encoder` decides.
ARCHITECTURE = Fields({"name": NAME, "args": table(PLAIN)}, {}, PLAIN)
FACTOR = Kind("a number other than 0", lambda x: number().fits(x) and abs(x) > 1e-9)
SCALE = Fields({"factor": FACTOR, "offset": number(), "nominal_range": RANGE}, {}, PLAIN)

# Settings of a run by which images are read, cut and scored once more.
SETTINGS: dict[str, Schema] = {
    "patch_size": whole_number(32, 4096),
    "resize": SIZE,
    "test_crop": one_of("center", "grid", "random"),
    "test_patch_num": whole_number(1),
    "exif_rotate": TRUTH,
    "skip_bad_images": TRUTH,
    "cross_resize": table(SIZE),
    "mix_resize": table(SIZE),
    "mix_scale": maybe(one_of("first", "range", "none")),
    "select_set": maybe(NAME),
    "image_column": NAME,
    "score_column": NAME,
    "split_column": NAME,
    "group_column": NAME,
    "select_on": one_of("test", "val"),
    "val_fraction": maybe(number(0, 1)),
    "label_noise": number(0),
    "dropout": number(0, 1),
    "drop_path": maybe(number(0, 1)),
    "fusion": NAME,
    "hyper": NAME,
    "lora": maybe(whole_number(1, 4096)),
    "lora_targets": Every(NAME),
    "lora_alpha": maybe(number(0)),
    "lora_base": DIGEST,
    "head": NAME,
    "pool": maybe(NAME),
    "loss": NAME,
    "dataset": NAME,
    "seed": COUNT,
    "train_test_num": COUNT,
}

# Of a set of images: the fields of `stats.calibration.Calibration`, and what it was made of.
CALIBRATION = Fields(
    {
        "images": whole_number(1, 1e9),
        "quantiles": RISING,
        "curve": Every(AMOUNT, 101, 101),
        "spread": Every(number(1e-12, 1e9), 101, 101),
        "residuals": Every(AMOUNT, 1, 1000),
        "opinions": RANGE,
        "which": text(longest=300),
        "model_scale": TRUTH,
        "score_range": RANGE,
        "higher_is_better": TRUTH,
        "chose_epoch": maybe(TRUTH),
    },
    # `evaluate.py --calibrate` says how it was made.
    {
        "record": Fields(
            {
                "flag": NAME,
                "path": maybe(PATH),
                "split": one_of("auto", "test", "all"),
                "seed": maybe(COUNT),
                "resize": SIZE,
                "skip_bad_images": TRUTH,
                "lower_is_better": LOWER,
                "image_root": maybe(PATH),
                **{f"{name}_column": NAME for name in ("image", "score", "split", "group")},
                "test_crop": one_of("center", "grid", "random"),
                "test_patch_num": whole_number(1),
                "like_training": COUNT,
                "records": DIGEST,
                "pixels": DIGEST,
                "weights": DIGEST,
                "digest": DIGEST,
            },
            {},
            PLAIN,
        )
    },
    PLAIN,
)

# What no model can be used without.
_NEEDED = ("fusion", "patch_size", "resize", "dataset", "test_crop", "test_patch_num")
DESCRIPTION = Fields(
    {
        "format": whole_number(1),
        "backbone": NAME,
        **{name: SETTINGS[name] for name in _NEEDED},
        "score_range": RANGE,
        "higher_is_better": TRUTH,
    },
    {
        **SETTINGS,
        "architecture": ARCHITECTURE,
        "mean": Every(number(-1000, 1000), 3, 3),
        "std": Every(number(1e-6, 1000), 3, 3),
        "nominal_range": RANGE,
        "scales": table(SCALE),
        "metrics": table(FIGURES),
        "calibration": table(CALIBRATION),
        "run": NAME,
        "versions": table(NAME),
        # Of a file of a runtime: the digest of the file with its weights.
        "exported": Fields({"precision": one_of("fp32", "int8"), "weights": DIGEST}, {}, PLAIN),
        "certificate": Fields({"format": whole_number(1)}, {}, plain(4 * LONGEST_CHAIN)),
    },
    PLAIN,
)

# A model that a run started from has started from another one, and so on.
START: Schema = Kind(f"at most {LONGEST_CHAIN} models, each started from the next", lambda x: False)
for _ in range(LONGEST_CHAIN):
    START = Fields({"file": PATH, "weights": DIGEST, "starts": table(START)}, {}, PLAIN)

CERTIFICATE = Fields(
    {
        "command": Every(text(), 1, 10_000),
        "seed": COUNT,
        "code": Fields(
            {"sources": DIGEST, "changed": maybe(TRUTH), "commit": NAME}, {}, maybe(NAME)
        ),
        "hardware": Fields(
            {
                "device": NAME,
                "precision": one_of("bf16", "fp32"),
                "threads": whole_number(1, 100_000),
                "processes": whole_number(1, 1_000_000),
            },
            {},
            PLAIN,
        ),
        "rule": Fields(
            {
                "select_on": one_of("test", "val"),
                "select_set": maybe(NAME),
                # False: the run was not to stop early.
                "patience": Kind("a whole number or false", lambda x: x is False or COUNT.fits(x)),
            },
            {},
            PLAIN,
        ),
        "sets": table(
            Fields(
                {
                    "flag": NAME,
                    "path": maybe(PATH),
                    "trained": TRUTH,
                    "images": table(COUNT),
                    "records": DIGEST,
                    "pixels": DIGEST,
                    "notes": Every(text()),
                    # The names and hashes of the images, packed.
                    "looks": text(longest=1_000_000_000),
                },
                {},
                PLAIN,
            )
        ),
        "starts": table(START),
        "resamples": whole_number(1, 1_000_000),
        "round": whole_number(1, 1e9),
        "epoch": whole_number(0, 1e9),
        "weights": DIGEST,
        "predictions": DIGEST,
        "figures": table(INTERVALS),
    },
    {"seal": DIGEST, "calibration": DIGEST},
    PLAIN,
)


def problem_of_description(description: Any) -> str | None:
    """One line on the first field of a description that does not fit; None where all fit."""
    # A later format may know other kinds, so its number is looked at first.
    format_number = description.get("format") if isinstance(description, Mapping) else None
    if whole_number(FORMAT + 1).fits(format_number):
        return f"its description has format {format_number}, but this program reads only {FORMAT}"
    problem = mismatch(description, DESCRIPTION)
    if problem is None and (certificate := certificate_of(description)):
        problem = mismatch(certificate, CERTIFICATE, "certificate")
    # Without it, the encoder would be looked up where its name says: in a folder, or on a hub.
    if problem is None and ":" in description["backbone"] and "architecture" not in description:
        problem = f"architecture: missing for backbone {description['backbone']}"
    if problem is None:
        problem = problem_of_crops(description["patch_size"], description["test_patch_num"])
    return f"its description is damaged: {problem}" if problem else None


def problem_of_crops(patch_size: int, number_of_patches: int) -> str | None:
    """One line if an image's patches would take absurd memory; None otherwise."""
    if number_of_patches * patch_size**2 <= MOST_PATCH_PIXELS:
        return None
    return (
        f"test_patch_num: expected at most {MOST_PATCH_PIXELS // patch_size**2} "
        f"patches of {patch_size} pixels, found {number_of_patches}"
    )


def certificate_of(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """The certificate in a description; {} where there is none of this program's format."""
    certificate = description.get("certificate", {})
    return certificate if certificate.get("format") == CERTIFICATE_FORMAT else {}
