"""Calibrations from any scored sets, as `evaluate.py --calibrate` writes them, and their checks.

Such a calibration has a `record`: from which set and with which settings it was made, and digests
of the set, of the weights, and of the calibration with its record.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base import errors, files, plain_values
from hyperiqa.datasets import names, records
from hyperiqa.model import checkpoints, description as descriptions
from hyperiqa.scoring import evaluation, quality_model, verdicts
from hyperiqa.stats.calibration import FEWEST
from hyperiqa.training import batches, calibrations, certificate

# The fields of a record by which the set is read again.
SETTINGS = (
    *("flag", "path", "weights", "split", "seed", "skip_bad_images", "lower_is_better"),
    *vars(records.Columns()),
)
CROPS = ("test_crop", "test_patch_num")

# Scores that are computed on another machine differ by rounding, and so do fits in another process:
# most where the map is steep. Lists of numbers may differ by this share of their largest number on
# average, and a single number by `LARGEST_GAP`.
TOLERANCE = 1e-3
LARGEST_GAP = 0.03


def check_suitable(tests: Sequence[evaluation.SetTest]) -> None:
    """Raise UserError for a set that has too few images, or the same opinion of all of them."""
    for test in tests:
        opinions = [record.score for record in test.data.records]
        if len(opinions) < FEWEST or len(set(opinions)) == 1:
            raise errors.UserError(
                f"--calibrate: {test.title}: expected at least {FEWEST} images and opinions that "
                f"differ, found {errors.counted(len(opinions), 'image')} and "
                f"{errors.counted(len(set(opinions)), 'different opinion')}"
            )


def with_record(
    test: evaluation.SetTest, model: quality_model.QualityModel, settings: Namespace
) -> dict[str, Any]:
    """The calibration of a scored set with its record. Raises UserError where there can be none.

    settings: those of SETTINGS.
    """
    calibration = calibrations.calibrated(
        test.data,
        test.records,
        test.scale.common(test.scores),
        test.scale if test.is_trained else None,
        model.description,
        test.which,
    )
    record = {
        **{name: getattr(settings, name) for name in SETTINGS},
        **{name: model.description[name] for name in CROPS},
        "resize": test.resize,
        "like_training": test.like_training,
        "records": test.data.fingerprint(),
        "pixels": certificate.pixels_digest(test.images),
    }
    calibration["record"] = plain_values.to_json_value(record)
    calibration["record"]["digest"] = _digest(calibration)
    return calibration


def _digest(calibration: Mapping[str, Any]) -> str:
    return certificate.json_digest(
        {**calibration, "record": {**calibration["record"], "digest": None}}
    )


def write(
    options: Namespace,
    path: Path,
    model: quality_model.QualityModel,
    tests: Sequence[evaluation.SetTest],
) -> None:
    """Write the model with the calibrations of scored sets in place of those that it has.

    options: of `evaluate.py`. path: the model's file. Raises UserError for a set that cannot be
    calibrated.
    """
    # Read once more, because flags have changed the description of the loaded model.
    _, description = checkpoints.load_model(path)
    state = checkpoints.portable_state(model.net)
    weights = checkpoints.digest(state)
    description["calibration"] = {}
    for (flag, place), test in zip(options.datasets.items(), tests, strict=True):
        settings = Namespace(**vars(options), flag=flag, path=place, weights=weights)
        try:
            calibration = with_record(test, model, settings)
        except errors.UserError as mistake:
            raise errors.UserError(f"--calibrate: {test.title}: {mistake}") from None
        description["calibration"][names.record_name(flag)] = calibration
    if options.calibrate.suffix == ".safetensors":
        checkpoints.save_safetensors(options.calibrate, state, description)
    else:
        checkpoints.describe(state, description)
        checkpoints.save(options.calibrate, state)


def score_again(
    model: quality_model.QualityModel,
    settings: Namespace,
    flag: str,
    path: Path | None,
    options: Namespace,
) -> evaluation.SetTest:
    """A set, read and scored with the settings of an earlier evaluation. Raises UserError.

    options: the flags of `certify.py` for the cache.
    """
    (test,) = evaluation.read_sets({flag: path}, model.description, settings)
    cache_dir = (options.cache_dir or files.HERE / "cache") if options.cache else None
    evaluation.load_images([test], model, cache_dir, settings.skip_bad_images)
    evaluation.score(test, model, batches.SCORE_BATCH)
    return test


def records_of(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Set -> the record of its calibration, for the calibrations that have one."""
    stated = description.get("calibration", {})
    return {name: stated[name]["record"] for name in stated if "record" in stated[name]}


def check(
    model: quality_model.QualityModel, options: Namespace, paths: Mapping[str, Path | None]
) -> Iterator[verdicts.Check]:
    """Check the calibrations that have a record, by making them again where their set is found.

    options: the flags of `certify.py`. paths: set -> where it lies; None: its default place.
    """
    weights = checkpoints.digest(checkpoints.portable_state(model.net))
    for name, record in records_of(model.description).items():
        calibration = model.description["calibration"][name]
        yield verdicts.compare(
            f"{name} calibration's record", record["digest"], _digest(calibration)
        )
        yield verdicts.compare(f"{name} calibration's weights", record["weights"], weights)
        try:
            yield compare_calibrations(
                name, calibration, _made_again(model, record, paths[name], options)
            )
        except errors.UserError as mistake:
            yield verdicts.Check(f"{name} calibration", verdicts.UNCHECKED, str(mistake))


def _made_again(
    model: quality_model.QualityModel,
    record: Mapping[str, Any],
    path: Path | None,
    options: Namespace,
) -> dict[str, Any]:
    if problem := descriptions.problem_of_crops(
        model.description["patch_size"], record["test_patch_num"]
    ):
        raise errors.UserError(problem)
    if path is None and record["path"]:
        raise errors.UserError(
            f"{record['path']} is no longer there; --cross_test {record['flag']}=PATH says where "
            "the set lies now"
        )
    description = {**model.description, **{name: record[name] for name in CROPS}}
    model = quality_model.QualityModel(model.net, description, model.hardware)
    # A flag counts where the folder of the record is not here.
    root = record["image_root"] and (files.known_place(record["image_root"]) or options.image_root)
    settings = Namespace(**{**record, "image_root": root})
    return with_record(score_again(model, settings, record["flag"], path, options), model, settings)


def compare_calibrations(
    name: str, stated: Mapping[str, Any], current: Mapping[str, Any]
) -> verdicts.Check:
    """Compare a set's calibration and its record with those that come out now."""
    before = {**stated, **stated.get("record", {})}
    now = {**current, **current.get("record", {})}
    # The digest changes with the last digit, and images may lie elsewhere.
    fields = {*before, *now} - {"record", "digest", "image_root"}
    others = [field for field in sorted(fields) if not _is_near(before.get(field), now.get(field))]
    if others:
        return verdicts.Check(f"{name} calibration", verdicts.DIFFERS, f"other {', '.join(others)}")
    return verdicts.Check(f"{name} calibration", verdicts.REPRODUCED)


def _is_near(stated: Any, current: Any) -> bool:
    if stated == current or not np.shape(current) or np.shape(stated) != np.shape(current):
        return stated == current
    gaps = np.abs(np.subtract(stated, current))
    largest = np.abs(current).max()
    return bool(gaps.mean() <= TOLERANCE * largest and gaps.max() <= LARGEST_GAP * largest)
