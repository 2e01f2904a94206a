"""A model's certificate read, and its checks that need no training: of the file and the data sets.

What the certificate says twice is compared, and what it says of files is computed from them again.
docs/using_models.md lists what only another training can tell.
"""

import contextlib
import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, counted
from hyperiqa.datasets.names import record_name
from hyperiqa.model import checkpoints, description as descriptions
from hyperiqa.scoring import calibrating, quality_model, verdicts
from hyperiqa.stats import metrics
from hyperiqa.training import (
    batches,
    calibrations,
    certificate,
    engine,
    log,
    options as run_options,
    run_files,
    sets as run_sets,
)

# The packages whose versions are shown.
PACKAGES = ("hyperiqa", "python", "torch", "torchvision", "timm", "numpy", "scipy", "pillow")

# What the certificate says of a set: its field, and what it is called.
FACTS_OF_SET = {
    "records": "records and split",
    "images": "numbers of images",
    "pixels": "pixels",
    "looks": "hashes",
}

# Data set -> where it lies; None: its default place.
Paths = Mapping[str, Path | None]


@dataclass(frozen=True)
class ReadSets:
    """Data sets that were read and scored as by the run.

    images: data set -> its decoded images.
    tested: part -> (scores, MOS), both (N,); the scores rise where the opinions do.
    description: what a model's description says of these.
    calibrations: those that the run made of them.
    """

    images: dict[str, batches.DecodedSet]
    tested: dict[str, tuple[np.ndarray, np.ndarray]]
    description: dict[str, Any] = field(default_factory=dict)
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_certificate(path: Path) -> tuple[Mapping, dict[str, Any]]:
    """A model file's state dict, and its description with a certificate.

    Raises UserError if it has no certificate, or one that is damaged or of another format.
    """
    state, description = checkpoints.load_model(path)
    certified = descriptions.certificate_of(description)
    if not certified:
        certificate_format = description.get("certificate", {}).get("format")
        other_format = f"its certificate is of format {certificate_format}"
        reason = "carries no certificate" if certificate_format is None else other_format
        raise UserError(f"{path}: {reason}; expected a best model of a newer run")
    if not any(facts["trained"] for facts in certified["sets"].values()):
        raise UserError("the certificate is damaged: sets: none that the model was trained on")
    # Raises UserError where they are damaged.
    certificate.training_hashes(description)
    return state, description


def check_file(
    state: Mapping, description: Mapping[str, Any], log_dir: Path
) -> Iterator[verdicts.Check]:
    """Check what the model's file says of itself, and the models that the run started from.

    state, description: what the file holds. log_dir: the folder with the run's predictions.
    """
    certified = description["certificate"]
    if certificate.seal_of(description) == certified.get("seal"):
        yield verdicts.Check("seal", verdicts.REPRODUCED)
    else:
        yield verdicts.Check("seal", verdicts.DIFFERS, "the description was edited")
    yield verdicts.compare("weights", certified["weights"], checkpoints.digest(state))
    stated = description.get("calibration", {})
    recorded = calibrating.records_of(description)
    # Those that `evaluate.py` has put in place of the run's have records instead.
    if len(recorded) < len(stated) or (not stated and "calibration" in certified):
        yield verdicts.compare(
            "calibration", certified.get("calibration"), certificate.json_digest(stated)
        )
    round_suffix = f"_round{certified['round']}" if certified["round"] > 1 else ""
    predictions = log_dir / f"{description['run']}{round_suffix}_predictions.csv"
    yield _check_digest(
        "predictions",
        certified["predictions"],
        lambda: certificate.predictions_digest(run_files.read_predictions(predictions)),
    )
    yield from check_starts(certified)


def check_starts(certified: Mapping[str, Any]) -> Iterator[verdicts.Check]:
    """Check that the models that the run started from lie where they did, unchanged."""
    for flag, start in certified["starts"].items():
        yield _check_digest(
            f"--{flag} {start['file']}",
            start["weights"],
            partial(certificate.weights_of, flag, Path(start["file"])),
        )


def flags_of_sets(sets: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """A certificate's sets that the model was trained on, and its cross tests.

    Both map the set's name in flags to its name in records.
    """
    trained = {facts["flag"]: name for name, facts in sets.items() if facts["trained"]}
    cross = {facts["flag"]: name for name, facts in sets.items() if not facts["trained"]}
    return trained, cross


def check_settings(description: Mapping[str, Any], options: Namespace) -> list[verdicts.Check]:
    """Compare the settings in the description with those that its command gives.

    options: the settings of the command.
    """
    certified = description["certificate"]
    starts = certified["starts"]
    sets = [(facts["flag"], facts["trained"]) for facts in certified["sets"].values()]
    cross = options.cross_test
    if cross is None:
        # Without a flag, SPAQ is tested where it is found.
        cross = ["spaq"] if ("spaq", False) in sets else []
    stated = {
        **run_options.figure_settings(description),
        "first seed": certified["seed"],
        "rule": certified["rule"],
        "starts": sorted(starts),
        "sets": sorted(sets),
    }
    expected = {
        **run_options.figure_settings(options),
        "first seed": options.seed,
        "seed": options.seed + certified["round"] - 1,
        "init_digest": starts.get("init", {}).get("weights"),
        "teacher_digest": starts.get("teacher", {}).get("weights"),
        "rule": certificate.describe_rule(options),
        "starts": sorted(flag for flag in certificate.STARTS if getattr(options, flag)),
        "sets": sorted(
            {**dict.fromkeys(options.trained, True), **dict.fromkeys(cross, False)}.items()
        ),
    }
    # The model that the run started from decides what no flag does, and the encoder what is pooled.
    # The names of the sets are compared as flags have them.
    undecided = [
        name
        for name in run_options.DECIDED_BY_INIT
        if (options.init or name == "pool") and expected[name] is None
    ]
    for name in ("dataset", *undecided):
        del stated[name], expected[name]
    return verdicts.compare_fields("settings", stated, expected)


def check_headline(description: Mapping[str, Any]) -> list[verdicts.Check]:
    """Compare the figures that are shown with a model with those of its certificate."""
    certified = description["certificate"]
    figures = certified["figures"]
    trained, cross = flags_of_sets(certified["sets"])
    rule = Namespace(select_on=certified["rule"]["select_on"], select_set=None)
    parts = run_sets.TestedParts.of_run(
        rule, dict.fromkeys(trained.values()), dict.fromkeys(cross.values())
    )
    checks = verdicts.compare_fields(
        "figures",
        {part: sorted(intervals) for part, intervals in figures.items()},
        dict.fromkeys(parts.sets, sorted(metrics.RECORDED)),
    )
    if checks[0].verdict == verdicts.DIFFERS:
        return checks
    values: dict[str, dict[str, float]] = {"train": {}}
    for part, intervals in figures.items():
        # numpy turns None into nan.
        values[part] = {
            name: float(np.array(interval, float)[0]) for name, interval in intervals.items()
        }
    headline = parts.with_means(values)
    del headline["train"]
    versions = description.get("versions", {})
    return verdicts.compare_fields(
        "description",
        {"metrics": description.get("metrics", {}), "versions": versions},
        {
            "metrics": headline,
            "versions": {package: certified["code"].get(package) for package in versions},
        },
    )


def _check_digest(item: str, certified: str, digest_now: Callable[[], str]) -> verdicts.Check:
    # `digest_now` reads a file, which may be gone.
    try:
        return verdicts.compare(item, certified, digest_now())
    except (UserError, OSError) as problem:
        return verdicts.Check(item, verdicts.UNCHECKED, str(problem))


def read_trained_sets(
    model: quality_model.QualityModel, options: Namespace, paths: Paths
) -> ReadSets:
    """Read and score the data sets that the model was trained on, as its run did.

    options: the flags of `certify.py` that say how images are read. Raises UserError.
    """
    sizes = model.description.get("mix_resize", {})
    settings = run_options.settings_again(
        model.description,
        trained=dict(paths),
        # Each cross test is read on its own.
        cross_test={},
        # By which set the epoch was chosen changes nothing here.
        select_set=None,
        mix_resize={name: sizes.get(name, model.description["resize"]) for name in paths},
        cache=options.cache,
        cache_dir=options.cache_dir,
        image_root=options.image_root,
        # The run has refused images that are in two sets, or was told to allow them.
        allow_overlap=True,
        # Runs of older versions had no such flag, and split like those that have it.
        allow_shared_content=model.description.get("allow_shared_content", True),
    )
    data = run_sets.RunData(settings, model.description["seed"])
    data.decode(model.hardware.device, log.SilentLog(Path(), Path()), new=True)
    tested = {}
    for part, (images, split) in data.tests.items():
        records = images.records(split)
        scores = engine.score_set(
            model.net,
            images,
            records,
            (settings.test_crop, settings.test_patch_num),
            model.hardware,
        )
        _, rising_scores = data.oriented_scores(images.data, scores)
        tested[part] = (rising_scores, np.array([record.score for record in records]))
    return ReadSets(
        data.images,
        tested,
        data.description,
        calibrations.of_run(data, tested, model.description),
    )


def read_cross_test(
    model: quality_model.QualityModel, options: Namespace, flag: str, path: Path | None
) -> ReadSets:
    """Read and score a cross test, as the model's run did. Raises UserError.

    flag: the set's name as the flags have it, such as `csv:NAME`.
    """
    settings = run_options.settings_again(
        model.description, image_root=options.image_root, split="auto", resize=None, seed=None
    )
    test = calibrating.score_again(model, settings, flag, path, options)
    name = record_name(flag)
    read_sets = ReadSets({name: test.images}, {name: (test.sign * test.scores, test.mos)})
    # Without a calibration of the run, there is nothing to compare.
    with contextlib.suppress(UserError):
        read_sets.calibrations[name] = calibrations.calibrated(
            test.data, test.records, test.scores, None, model.description
        )
    return read_sets


def check_sets(
    model: quality_model.QualityModel, options: Namespace, paths: Paths, twins: list
) -> Iterator[verdicts.Check]:
    """Check the records, the pixels and the figures of each data set.

    paths: data set -> where it lies. twins: filled with the pairs of test and training images that
    look alike.
    """
    trained, cross = flags_of_sets(model.description["certificate"]["sets"])
    # The sets that were trained on are read together, because they share a scale and a split. A
    # cross test is read alone: where it is missing, the others are still checked.
    jobs: dict[tuple[str, ...], Callable[[], ReadSets]] = {
        tuple(trained.values()): partial(
            read_trained_sets, model, options, {flag: paths[name] for flag, name in trained.items()}
        )
    }
    for flag, name in cross.items():
        jobs[name,] = partial(read_cross_test, model, options, flag, paths[name])
    decoded: list[batches.DecodedSet] = []
    for names, read in jobs.items():
        try:
            read_sets = read()
        except UserError as mistake:
            for name in names:
                yield verdicts.Check(
                    f"{name} records, pixels and figures", verdicts.UNCHECKED, str(mistake)
                )
            continue
        decoded += read_sets.images.values()
        yield from _compare_sets(model.description, read_sets)
    training = [images.data for images in decoded if images.data.name in trained.values()]
    twins += run_sets.near_duplicate_pairs(decoded, training)


def _compare_sets(description: Mapping[str, Any], read_sets: ReadSets) -> Iterator[verdicts.Check]:
    certified = description["certificate"]
    for name, images in read_sets.images.items():
        facts_of_set = certified["sets"].get(name)
        if facts_of_set is None:
            yield verdicts.Check(
                f"{name} records and split", verdicts.DIFFERS, "no set of the certificate"
            )
            continue
        facts_now = certificate.describe_set(images, facts_of_set["trained"])
        stated = {**facts_of_set, "looks": certificate.unpack_hashes(name, facts_of_set)}
        current = {**facts_now, "looks": certificate.unpack_hashes(name, facts_now)}
        for fact, item in FACTS_OF_SET.items():
            yield verdicts.compare(f"{name} {item}", stated[fact], current[fact])
        calibration = description.get("calibration", {}).get(name, {"record": {}})
        if "record" not in calibration:
            current = read_sets.calibrations.get(name, {})
            yield calibrating.compare_calibrations(name, calibration, current)
    if read_sets.description:
        stated = {name: description.get(name) for name in read_sets.description}
        yield from verdicts.compare_fields("scores", stated, read_sets.description)
    yield from verdicts.compare_figures(
        "", certified["figures"], certificate.figures_with_intervals(read_sets.tested)
    )


def facts(
    name: str, description: Mapping[str, Any], compared: bool = True
) -> Iterator[tuple[str, str]]:
    """A certificate in words: (title, text) of each fact.

    name: the name of the model's file. compared: whether to say how the code and the versions
    differ from those that run here.
    """
    certified = description["certificate"]
    code = certified["code"]
    now = certificate.code_version() if compared else code
    yield "Model", f"{name} of run {description['run']}"
    yield "Command", f"python {shlex.join(certified['command'])}"
    rules = {"test": "on the test set", "val": "on validation images"}
    yield (
        "Chosen",
        f"epoch {certified['epoch']} of round {certified['round']}, "
        f"{rules[certified['rule']['select_on']]}; seed {description['seed']}",
    )
    code_text = f"commit {code['commit'][:10]}" + (", changed since" if code["changed"] else "")
    if compared:
        which_code = "what" if code["sources"] == now["sources"] else "other code"
        code_text += f" ({which_code} runs here)"
    yield "Code", code_text
    versions = []
    for package in PACKAGES:
        version = code.get(package)
        is_same = now.get(package) == version
        versions.append(f"{package} {version}" + ("" if is_same else f" (here {now[package]})"))
    yield "Versions", ", ".join(versions)
    hardware = certified["hardware"]
    yield (
        "Hardware",
        f"{hardware['device']}, {hardware['precision']}, "
        f"{counted(hardware['threads'], 'thread')}, "
        f"{counted(hardware['processes'], 'process', 'processes')}",
    )
    for set_name, facts_of_set in certified["sets"].items():
        kind = "synthetic; " if is_of_demo(set_name, description) else ""
        yield set_name, kind + _set_text(facts_of_set)
    for set_name, calibration in description.get("calibration", {}).items():
        images = counted(calibration["images"], "image")
        yield "Calibration", f"{set_name}: {images} ({calibration['which']})"
    for flag, start in certified["starts"].items():
        yield f"--{flag}", " <- ".join(_start_texts(start))


def is_of_demo(set_name: str, description: Mapping[str, Any]) -> bool:
    """Whether a set of a model's tests is one of the demo's, which are synthetic."""
    path = descriptions.certificate_of(description).get("sets", {}).get(set_name, {}).get("path")
    # SPAQ without a place is the set beside the demo.
    is_of_demo_run = set_name == "demo" or (set_name == "spaq" and path is None)
    return is_of_demo_run and description["dataset"] == "demo"


def _set_text(facts_of_set: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{number} {split}" for split, number in facts_of_set["images"].items())
    split = "; ".join(facts_of_set["notes"]) or "split as it comes with the set"
    return (
        f"{'trained on' if facts_of_set['trained'] else 'cross test'}: {counts}; records "
        f"{facts_of_set['records']}, pixels {facts_of_set['pixels']}; {split}"
    )


def _start_texts(start: Mapping[str, Any]) -> Iterator[str]:
    # The models that this one started from follow, and so on.
    yield f"{start['file']} (weights {start['weights']})"
    for earlier in start["starts"].values():
        yield from _start_texts(earlier)
