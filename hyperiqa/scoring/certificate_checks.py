"""The checks of a certificate: the model's file itself, the data sets, and training once more."""

import math
import os
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.command_line import without_flags
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import HERE
from hyperiqa.datasets.names import record_name
from hyperiqa.datasets.records import Columns, DataSet
from hyperiqa.model import checkpoints
from hyperiqa.scoring import evaluation
from hyperiqa.scoring.quality_model import QualityModel
from hyperiqa.training import batches, certificate, engine, log, run_files
from hyperiqa.training.options import settings_again
from hyperiqa.training.sets import RunData, near_duplicate_pairs

REPRODUCED = "reproduced"
DIFFERS = "differs"
UNCHECKED = "cannot be checked"

# Figures are shown with four digits: less than half of the last one is no difference.
TOLERANCE = 5e-5

# Those whose versions are shown.
PACKAGES = ("hyperiqa", "python", "torch", "torchvision", "timm", "numpy", "scipy", "pillow")

# Data set -> where it lies; None: its default place.
Paths = Mapping[str, Path | None]


@dataclass(frozen=True)
class Check:
    """An item of a certificate and the verdict on it.

    note: how exactly it was reproduced, how it differs, or why it cannot be checked.
    """

    item: str
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class ReadSets:
    """Data sets that were read and scored as by the run.

    images: data set -> its decoded images.
    tested: part -> (scores, MOS), both (N,); the scores rise where the opinions do.
    training: those of the data sets that the model was trained on.
    """

    images: dict[str, batches.DecodedSet]
    tested: dict[str, tuple[np.ndarray, np.ndarray]]
    training: list[DataSet]


def compare(item: str, certified: object, current: object) -> Check:
    """Compare a digest of the certificate with what it is now."""
    if certified == current:
        return Check(item, REPRODUCED)
    return Check(item, DIFFERS, f"{certified} -> {current}")


def compare_figure(item: str, certified: Sequence[float | None], current: Sequence[float]) -> Check:
    """Compare a figure of the certificate with what it is now.

    certified, current: [value] or [value, low, high], with the bounds of its interval. A
    certificate has None for what is undefined, which is nan now.
    """
    item = f"{item} {_figure_text(certified)}"
    gap = max(_gap(before, now) for before, now in zip(certified, current))
    # The bootstrap draws the same images again, so that the bounds are compared like the value.
    if gap > TOLERANCE:
        return Check(item, DIFFERS, f"now {_figure_text(current)}")
    return Check(item, REPRODUCED, "exactly" if gap == 0 else f"to {gap:.1g}")


def _gap(certified: float | None, current: float) -> float:
    """How far apart two values are: infinitely, if only one of them is undefined."""
    if certified is None:
        return 0.0 if math.isnan(current) else math.inf
    gap = abs(certified - current)
    return math.inf if math.isnan(gap) else gap


def _figure_text(figure: Sequence[float | None]) -> str:
    """A figure as `0.9012 [0.8856 0.9143]`, or `0.9012` without its interval."""
    # numpy turns None into nan.
    texts = [f"{number:.4f}" for number in np.array(figure, dtype=float)]
    return f"{texts[0]} [{' '.join(texts[1:])}]" if texts[1:] else texts[0]


def check_file(state: Mapping, description: Mapping[str, Any], log_dir: Path) -> Iterator[Check]:
    """Check what the model's file says of itself, and what the run started from.

    state, description: what the file holds. log_dir: the folder with the run's predictions.
    """
    certified = description["certificate"]
    if certificate.seal_of(description) == certified.get("seal"):
        yield Check("seal", REPRODUCED)
    else:
        yield Check("seal", DIFFERS, "the description was edited")
    yield compare("weights", certified["weights"], checkpoints.digest(state))
    round_suffix = f"_round{certified['round']}" if certified["round"] > 1 else ""
    predictions = log_dir / f"{description['run']}{round_suffix}_predictions.csv"
    yield _check_digest(
        "predictions",
        certified["predictions"],
        lambda: certificate.predictions_digest(run_files.read_predictions(predictions)),
    )
    for flag, start in certified["starts"].items():
        weights_now = partial(certificate.weights_of, flag, Path(start["file"]))
        yield _check_digest(f"--{flag} {start['file']}", start["weights"], weights_now)


def _check_digest(item: str, certified: str, digest_now: Callable[[], str]) -> Check:
    """Compare a digest with what `digest_now` reads from a file, which may be gone."""
    try:
        return compare(item, certified, digest_now())
    except (UserError, OSError) as problem:
        return Check(item, UNCHECKED, str(problem))


def read_trained_sets(model: QualityModel, options: Namespace, paths: Paths) -> ReadSets:
    """Read and score the data sets that the model was trained on, as its run did.

    options: the flags of `certify.py` that say how images are read. Raises UserError.
    """
    settings = settings_again(
        model.description,
        trained=dict(paths),
        # Each cross test is read on its own.
        cross_test={},
        cache=options.cache,
        cache_dir=options.cache_dir,
        image_root=options.image_root,
        # The run has refused images that are in two sets, or was told to allow them.
        allow_overlap=True,
    )
    data = RunData(settings, model.description["seed"])
    data.decode(model.hardware.device, log.SilentLog(Path(), Path()), new=True)
    crops = (settings.test_crop, settings.test_patch_num)
    tested = {}
    for part, (images, split) in data.tests.items():
        records = images.records(split)
        scores = engine.score_set(model.net, images, records, crops, model.hardware)
        _, rising_scores = data.oriented_scores(images.data, scores)
        tested[part] = (rising_scores, np.array([record.score for record in records]))
    return ReadSets(data.images, tested, list(data.trained.values()))


def read_cross_test(
    model: QualityModel, options: Namespace, flag: str, path: Path | None
) -> ReadSets:
    """Read and score a cross test, as the model's run did. Raises UserError.

    flag: the set's name as the flags have it, such as `csv:NAME`.
    """
    description = model.description
    settings = settings_again(description, image_root=options.image_root)
    (test,) = evaluation.read_sets(
        {flag: path},
        description,
        seed=description["seed"],
        lower_is_better=settings.lower_is_better,
        columns=Columns.of(settings),
    )
    cache_dir = (options.cache_dir or HERE / "cache") if options.cache else None
    evaluation.load_images([test], model, cache_dir, settings.skip_bad_images)
    evaluation.score(test, model, batches.SCORE_BATCH)
    name = record_name(flag)
    return ReadSets({name: test.images}, {name: (test.sign * test.scores, test.mos)}, [])


def check_sets(
    model: QualityModel, options: Namespace, paths: Paths, twins: list
) -> Iterator[Check]:
    """Check the records, the pixels and the figures of each data set.

    paths: data set -> where it lies. twins: filled with the pairs of test and training images that
    look alike.
    """
    certified = model.description["certificate"]
    sets = certified["sets"]
    trained_names = [name for name in sets if sets[name]["trained"]]
    cross_names = [name for name in sets if not sets[name]["trained"]]
    trained_parts = [part for part in certified["figures"] if part not in cross_names]
    trained_paths = {sets[name]["flag"]: paths[name] for name in trained_names}
    # The sets that were trained on are read together, because they share a scale and a split. A
    # cross test is read alone: where it is missing, the others are still checked.
    jobs: list[tuple[list[str], list[str], Callable[[], ReadSets]]] = [
        (trained_names, trained_parts, partial(read_trained_sets, model, options, trained_paths))
    ]
    for name in cross_names:
        read_alone = partial(read_cross_test, model, options, sets[name]["flag"], paths[name])
        jobs.append(([name], [name], read_alone))
    decoded: list[batches.DecodedSet] = []
    training: list[DataSet] = []
    for names, parts, read in jobs:
        try:
            read_sets = read()
        except UserError as mistake:
            digests = [f"{name} {digest}" for name in names for digest in ("records", "pixels")]
            for item in (*digests, *parts):
                yield Check(item, UNCHECKED, str(mistake))
            continue
        decoded += read_sets.images.values()
        training += read_sets.training
        yield from _compare_sets(certified, read_sets)
    twins += near_duplicate_pairs(decoded, training)


def _compare_sets(certified: Mapping[str, Any], read_sets: ReadSets) -> Iterator[Check]:
    for name, images in read_sets.images.items():
        facts_of_set = certified["sets"][name]
        yield compare(
            f"{name} records and split", facts_of_set["records"], images.data.fingerprint()
        )
        yield compare(f"{name} pixels", facts_of_set["pixels"], certificate.pixels_digest(images))
    for part, figures in certificate.figures_with_intervals(read_sets.tested).items():
        for figure, interval in figures.items():
            yield compare_figure(
                f"{part} {figure.upper()}", certified["figures"][part][figure], interval
            )


def check_retrained(description: Mapping[str, Any], paths: Paths) -> Iterator[Check]:
    """Train once more by the certificate's command, and compare weights and figures.

    paths: data set -> where it lies here.
    """
    certified = description["certificate"]
    script = certified["command"][0]
    with tempfile.TemporaryDirectory(prefix="certify_") as folder:
        words = _training_words(certified, paths)
        words += ["--log_dir", f"{folder}/logs", "--checkpoint_dir", folder, "--run_name", "again"]
        print(f"Training anew: python {script} {shlex.join(words)}", file=sys.stderr)
        # Sums are rounded in the order in which the threads share them.
        same_rounding = {**os.environ, "OMP_NUM_THREADS": str(certified["hardware"]["threads"])}
        process = subprocess.run(
            [sys.executable, HERE / script, *words],
            stdout=subprocess.DEVNULL,
            env=same_rounding,
            check=False,
        )
        if process.returncode:
            yield Check("training anew", UNCHECKED, f"it ended with exit code {process.returncode}")
            return
        run_folder = Path(folder, "again")
        if certified["round"] > 1:
            run_folder /= f"round{certified['round']}"
        # Read whole, before the temporary folder is removed.
        state, retrained = checkpoints.load_model(checkpoints.find_model(run_folder))
    yield compare("trained anew: weights", certified["weights"], checkpoints.digest(state))
    for part, figures in certified["figures"].items():
        for figure, (value, *_) in figures.items():
            yield compare_figure(
                f"trained anew: {part} {figure.upper()}",
                [value],
                [retrained["metrics"][part][figure]],
            )


def _training_words(certified: Mapping[str, Any], paths: Paths) -> list[str]:
    """The arguments of the certificate's command, with the data sets where they lie here."""
    words = certified["command"][1:]
    trained_sets: list[str] = []
    cross_tests: list[str] = []
    for name, facts_of_set in certified["sets"].items():
        place = f"={paths[name]}" if paths[name] else ""
        same_role = trained_sets if facts_of_set["trained"] else cross_tests
        same_role.append(facts_of_set["flag"] + place)
    # The sets' flags are replaced by others, for the sets may lie elsewhere here. The demo finds
    # its cross test itself.
    if "demo" not in certified["sets"]:
        words = without_flags(words, "--spaq_path", "--cross_test", "--no_spaq")
        words += ["--cross_test", *cross_tests] if cross_tests else ["--no_spaq"]
    # A run that was once resumed is trained from its beginning all the same.
    words = without_flags(words, "--dataset", "--dataset_path", "--resume")
    return [*words, "--dataset", *trained_sets]


def facts(
    name: str, description: Mapping[str, Any], compared: bool = True
) -> Iterator[tuple[str, str]]:
    """A certificate in words: (title, text) of each fact.

    name: of the model's file. compared: whether to say how the code and the versions differ from
    those that run here. Raises KeyError where the certificate lacks something.
    """
    certified = description["certificate"]
    now = certificate.code_version() if compared else None
    code = certified["code"]
    hardware = certified["hardware"]
    yield "Model", f"{name} of run {description['run']}"
    yield "Command", f"python {shlex.join(certified['command'])}"
    rules = {"test": "on the test set", "val": "on validation images"}
    yield (
        "Chosen",
        f"epoch {certified['epoch']} of round {certified['round']}, "
        f"{rules[certified['rule']['select_on']]}; seed {description['seed']}",
    )
    code_text = f"commit {code['commit'][:10]}"
    if code["changed"]:
        code_text += ", changed since"
    if now is not None:
        same_code = code["sources"] == now["sources"]
        code_text += " (what runs here)" if same_code else " (other code runs here)"
    yield "Code", code_text
    yield "Versions", ", ".join(_versions(code, now))
    plural = "es" if hardware["processes"] > 1 else ""
    yield (
        "Hardware",
        f"{hardware['device']}, {hardware['precision']}, {hardware['threads']} threads, "
        f"{hardware['processes']} process{plural}",
    )
    for set_name, facts_of_set in certified["sets"].items():
        yield set_name, _set_text(facts_of_set)
    for flag, start in certified["starts"].items():
        yield f"--{flag}", " <- ".join(_start_texts(start))


def _versions(code: Mapping[str, Any], now: Mapping[str, Any] | None) -> Iterator[str]:
    for package in PACKAGES:
        is_other = now is not None and now[package] != code[package]
        yield f"{package} {code[package]}" + (f" (here {now[package]})" if is_other else "")


def _set_text(facts_of_set: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in facts_of_set["images"].items())
    split = "; ".join(facts_of_set["notes"]) or "split as it comes with the set"
    return (
        f"{'trained on' if facts_of_set['trained'] else 'cross test'}: {counts}; records "
        f"{facts_of_set['records']}, pixels {facts_of_set['pixels']}; {split}"
    )


def _start_texts(start: Mapping[str, Any]) -> Iterator[str]:
    """A model that the run started from, then the models that this one started from, and so on."""
    yield f"{start['file']} (weights {start['weights']})"
    for earlier in start["starts"].values():
        yield from _start_texts(earlier)
