"""Sets of test images and their scores by runs or models.

The decoded images are with them where the data sets are at hand.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.records import Record
from hyperiqa.runs.reading import Run
from hyperiqa.stats import metrics
from hyperiqa.training.batches import DecodedSet
from hyperiqa.training.log import SilentLog
from hyperiqa.training.options import settings_again
from hyperiqa.training.run_files import read_records
from hyperiqa.training.sets import RunData


@dataclass
class ScoredSet:
    """A set's test images, their opinions, and their scores by each run or model.

    mos: (N,). scores: run -> (N,), which rise where the opinions do.
    images: the decoded images; None: they are not at hand.
    crop: (patch size, crop, number of crops) with which they were scored.
    """

    title: str
    names: Sequence[str]
    mos: np.ndarray
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    records: Sequence[Record] = ()
    images: DecodedSet | None = None
    crop: tuple[int, str, int] = (224, "center", 1)

    def errors(self, run: str) -> np.ndarray:
        """Scores on the scale of the MOS, minus the MOS.

        The four-parameter logistic maps the scores to that scale, where it can be fitted.
        """
        scores = metrics.fitted(self.scores[run], self.mos)
        if scores is None:
            scores = self.scores[run]
        return scores - self.mos


def sets_of_runs(
    short_names: Mapping[Run, str],
    places: Mapping[str, Path | None],
    cache_flags: Mapping[str, Any] | None,
) -> tuple[list[ScoredSet], list[str]]:
    """Each set that runs were tested on and left predictions of, once, and what is missing.

    short_names: run -> the name of its scores. places, cache_flags: as of `decode_sets`;
    without cache_flags no images are read.
    """
    sets: dict[tuple, ScoredSet] = {}
    # A dictionary holds each note once, in the order in which they came.
    notes: dict[str, None] = {}
    for run, short_name in short_names.items():
        for part in ("test", *run.cross_tests):
            scores = run.scores(part)
            if scores is None:
                continue
            title = run.settings.get("dataset", "test") if part == "test" else part
            key = (title, scores.keys, scores.mos.tobytes())
            if key not in sets:
                # Runs on different splits of a set have different images under its name.
                same_titles = sum(earlier_key[0] == title for earlier_key in sets)
                unique_title = f"{title} ({same_titles + 1})" if same_titles else title
                names = [image for image, _ in scores.keys]
                sets[key] = ScoredSet(unique_title, names, scores.mos)
                if cache_flags:
                    problem = _add_images(sets[key], run, part, places, cache_flags)
                    if problem:
                        notes[f"without pictures: {problem}"] = None
            sets[key].scores[short_name] = scores.score
    return list(sets.values()), list(notes)


def _add_images(
    scored_set: ScoredSet,
    run: Run,
    part: str,
    places: Mapping[str, Path | None],
    cache_flags: Mapping[str, Any],
) -> str:
    """Give the set its records and images, where they can be read; return what could not be."""
    decoded_sets, problem = decode_sets(run.path, tuple(places.items()), tuple(cache_flags.items()))
    images, records, crop = decoded_sets.get(part, (None, [], scored_set.crop))
    by_name = {record.name: record for record in records}
    # Predictions say names alone: each must stand for one image, and every image must be there.
    if len(by_name) == len(records) and by_name.keys() >= {*scored_set.names}:
        scored_set.records = [by_name[name] for name in scored_set.names]
        scored_set.images = images
        scored_set.crop = crop
    return problem


# A page of runs that are under way is written again and again.
@functools.cache
def decode_sets(path: Path, places: tuple, cache_flags: tuple) -> tuple[dict[str, Any], str]:
    """Read the images that a run was tested on, as the run itself read them.

    path: of the run's records. places: (set, place) of sets that are not where they were then.
    cache_flags: (name, value) of the cache's flags.
    Returns part -> (decoded images, records, crop), and what keeps sets from being read.
    """
    try:
        flags = next(record["flags"] for record in read_records(path) if record["type"] == "run")
        dataset_path = flags["dataset_path"]
        seed = int(flags["seed"])
    except (UserError, StopIteration, KeyError):
        return {}, f"{path}: a log that does not say which sets it is of"
    if not isinstance(dataset_path, dict):
        dataset_path = {flags["dataset"]: dataset_path}
    trained = _places_now(dataset_path, dict(places))
    cross_test = _places_now(flags.get("cross_test") or {}, dict(places))
    problems: list[str] = []
    # A cross test that has gone must not cost the run's own test set.
    for readable_cross_test in (cross_test, {}):
        try:
            options = settings_again(
                flags,
                trained=trained,
                cross_test=readable_cross_test,
                image_root=flags["image_root"],
                allow_overlap=True,
                cache_device="cpu",
                **dict(cache_flags),
            )
            data = RunData(options, seed)
            data.decode(torch.device("cpu"), SilentLog(Path(), Path()), new=True)
        except UserError as problem:
            problems.append(str(problem))
            continue
        crop = (options.patch_size, options.test_crop, options.test_patch_num)
        sets = {}
        for part, (images, split) in data.tests.items():
            sets[part] = (images, images.records(split), crop)
        return sets, "; ".join(problems)
    return {}, problems[-1]


def _places_now(
    places_then: Mapping[str, str | None], moved: Mapping[str, Path | None]
) -> dict[str, Path | None]:
    places: dict[str, Path | None] = {}
    for name, place in places_then.items():
        # Without a place, the set lies where sets usually do.
        then = None if place is None else Path(place)
        places[name] = moved.get(name, then)
    return places
