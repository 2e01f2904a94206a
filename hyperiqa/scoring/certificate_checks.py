"""A certificate checked: what the file says of itself, what the sets say of it, and what training anew says."""

import math
import os
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.command_line import without_flags
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import HERE
from hyperiqa.datasets.names import record_name
from hyperiqa.datasets.records import Columns
from hyperiqa.model import checkpoints
from hyperiqa.scoring import evaluation
from hyperiqa.scoring.quality_model import QualityModel
from hyperiqa.training import certificate, engine
from hyperiqa.training.batches import SCORE_BATCH
from hyperiqa.training.log import SilentLog
from hyperiqa.training.options import settings_again
from hyperiqa.training.run_files import read_predictions
from hyperiqa.training.sets import RunData, near_duplicate_pairs

REPRODUCED, DIFFERS, UNCHECKED = "reproduced", "differs", "cannot be checked"
TOLERANCE = 5e-5

Places = Mapping[str, Path | None]


@dataclass(frozen=True)
class Check:
    what: str
    verdict: str
    how: str = ""


def same(what: str, own: object, found: object) -> Check:
    return Check(what, REPRODUCED) if own == found else Check(what, DIFFERS, f"{own} -> {found}")


def compared(what: str, own: Sequence[float | None], found: Sequence[float]) -> Check:
    """A figure of the certificate, alone or with its interval, beside what it is found to be; undefined is None."""
    gaps = [abs(a - b) if a is not None else float(b == b) for a, b in zip(own, found)]
    gap = max(math.inf if math.isnan(gap) else gap for gap in gaps)
    how = "exactly" if gap == 0 else f"to {gap:.1g}" if gap <= TOLERANCE else f"now {_shown(found)}"
    return Check(f"{what} {_shown(own)}", REPRODUCED if gap <= TOLERANCE else DIFFERS, how)


def _shown(figure: Sequence[float | None]) -> str:
    value, *bounds = (f"{math.nan if each is None else each:.4f}" for each in figure)
    return f"{value} [{' '.join(bounds)}]" if bounds else value


def check_file(state: Mapping, d: Mapping[str, Any], log_dir: Path) -> Iterator[Check]:
    """The seal, the weights, the run's predictions in `log_dir`, and what it started from."""
    c = d["certificate"]
    unbroken = certificate.seal_of(d) == c.get("seal")
    yield (
        Check("seal", REPRODUCED)
        if unbroken
        else Check("seal", DIFFERS, "the description was edited")
    )
    yield same("weights", c["weights"], checkpoints.digest(state))
    file = log_dir / (
        "_".join([d["run"], *([f"round{c['round']}"] if c["round"] > 1 else []), "predictions.csv"])
    )
    jobs = [
        (
            "predictions",
            c["predictions"],
            lambda: certificate.predictions_digest(read_predictions(file)),
        )
    ]
    for how, start in c["starts"].items():
        digest = lambda how=how, file=Path(start["file"]): certificate.weights_of(how, file)  # noqa: E731
        jobs.append((f"--{how} {start['file']}", start["weights"], digest))
    for what, own, found in jobs:
        try:
            yield same(what, own, found())
        except (UserError, OSError) as problem:
            yield Check(what, UNCHECKED, str(problem))


def trained_sets(model: QualityModel, options: Namespace, flags: Places) -> tuple[dict, dict, list]:
    """The sets that were trained on, read as by the run: (name -> decoded, part -> (scores, MOS), their data sets)."""
    more = dict(
        cache=options.cache,
        cache_dir=options.cache_dir,
        image_root=options.image_root,
        allow_overlap=True,
    )
    run = settings_again(model.description, trained=dict(flags), cross_test={}, **more)
    data, tested = RunData(run, model.description["seed"]), {}
    data.decode(model.hardware.device, SilentLog(Path(), Path()), new=True)
    for part, (images, split) in data.tests.items():
        records = images.records(split)
        scores = engine.score_set(
            model.net, images, records, (run.test_crop, run.test_patch_num), model.hardware
        )
        tested[part] = (
            data.oriented_scores(images.data, scores)[1],
            np.array([r.score for r in records]),
        )
    return data.images, tested, list(data.trained.values())


def cross_set(
    model: QualityModel, options: Namespace, flag: str, path: Path | None
) -> tuple[dict, dict, list]:
    """A cross test, read as by the run; the same as of `trained_sets`."""
    d = model.description
    run = settings_again(d, image_root=options.image_root)
    how = dict(seed=d["seed"], lower_is_better=run.lower_is_better, columns=Columns.of(run))
    (test,) = evaluation.read_sets({flag: path}, d, **how)
    cache_dir = (options.cache_dir or HERE / "cache") if options.cache else None
    evaluation.load_images([test], model, cache_dir, run.skip_bad_images)
    evaluation.score(test, model, SCORE_BATCH)
    return (
        {record_name(flag): test.images},
        {record_name(flag): (test.sign * test.scores, test.mos)},
        [],
    )


def check_sets(
    model: QualityModel, options: Namespace, where: Places, twins: list
) -> Iterator[Check]:
    """Records, pixels and figures of each set; `twins` gets the near duplicates. The sets that were trained on belong
    together, each cross test is read on its own."""
    c = model.description["certificate"]
    sets, cross = c["sets"], [name for name, each in c["sets"].items() if not each["trained"]]
    trained = {each["flag"]: where[name] for name, each in sets.items() if each["trained"]}
    own, parts = ([name for name in each if name not in cross] for each in (sets, c["figures"]))
    jobs: list[tuple[list[str], list[str], Any]] = [
        (own, parts, lambda: trained_sets(model, options, trained))
    ]
    for name in cross:
        flag, path = sets[name]["flag"], where[name]
        jobs.append(
            ([name], [name], lambda flag=flag, path=path: cross_set(model, options, flag, path))
        )
    decoded, of_training = list[Any](), list[Any]()
    for names, parts, read in jobs:
        try:
            images, tested, training = read()
        except UserError as mistake:
            unread = [
                *(f"{name} {what}" for name in names for what in ("records", "pixels")),
                *parts,
            ]
            yield from (Check(what, UNCHECKED, str(mistake)) for what in unread)
            continue
        decoded, of_training = [*decoded, *images.values()], [*of_training, *training]
        for name, each in images.items():
            yield same(f"{name} records and split", sets[name]["records"], each.data.fingerprint())
            yield same(f"{name} pixels", sets[name]["pixels"], certificate.pixels_digest(each))
        for part, figures in certificate.figures_with_intervals(tested).items():
            for figure, bounds in figures.items():
                yield compared(f"{part} {figure.upper()}", c["figures"][part][figure], bounds)
    twins += near_duplicate_pairs(decoded, of_training)


def check_again(d: Mapping[str, Any], where: Places) -> Iterator[Check]:
    """Train anew by the certificate's command, on the sets as they lie here, and compare weights and figures."""
    c = d["certificate"]
    script, *words = c["command"]
    placed: dict[bool, list[str]] = {True: [], False: []}
    for name, each in c["sets"].items():
        placed[each["trained"]].append(each["flag"] + (f"={where[name]}" if where[name] else ""))
    if "demo" not in c["sets"]:  # which finds its cross test itself
        words = without_flags(words, "--spaq_path", "--cross_test", "--no_spaq")
        words += ["--cross_test", *placed[False]] if placed[False] else ["--no_spaq"]
    # Also where the run was once taken up again, it is trained from its beginning.
    words = [
        *without_flags(words, "--dataset", "--dataset_path", "--resume"),
        "--dataset",
        *placed[True],
    ]
    with tempfile.TemporaryDirectory(prefix="certify_") as folder:
        words += ["--log_dir", f"{folder}/logs", "--checkpoint_dir", folder, "--run_name", "again"]
        print(f"Training anew: python {script} {shlex.join(words)}", file=sys.stderr)
        same_rounding = {**os.environ, "OMP_NUM_THREADS": str(c["hardware"]["threads"])}
        command = [sys.executable, HERE / script, *words]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, env=same_rounding, check=False)
        if done.returncode:
            yield Check("training anew", UNCHECKED, f"it ended with exit code {done.returncode}")
            return
        place = Path(folder, "again", *([f"round{c['round']}"] if c["round"] > 1 else []))
        state, again = checkpoints.load_model(checkpoints.find_model(place))
    yield same("trained anew: weights", c["weights"], checkpoints.digest(state))
    for part, figures in c["figures"].items():
        for figure, (own, *_) in figures.items():
            yield compared(
                f"trained anew: {part} {figure.upper()}", [own], [again["metrics"][part][figure]]
            )


def facts(name: str, d: Mapping[str, Any], compared: bool = True) -> Iterator[tuple[str, str]]:
    """The certificate for a person: (title, text). compared: with what runs here."""
    c, now = d["certificate"], certificate.code_version()
    code, hardware = c["code"], c["hardware"]
    yield "Model", f"{name} of run {d['run']}"
    yield "Command", f"python {shlex.join(c['command'])}"
    on = {"test": "on the test set", "val": "on validation images"}[c["rule"]["select_on"]]
    yield "Chosen", f"epoch {c['epoch']} of round {c['round']}, {on}; seed {d['seed']}"
    here = "what runs here" if code["sources"] == now["sources"] else "other code runs here"
    changed = ", changed since" if code["changed"] else ""
    yield "Code", f"commit {code['commit'][:10]}{changed}{f' ({here})' if compared else ''}"
    packages = ("hyperiqa", "python", "torch", "torchvision", "timm", "numpy", "scipy", "pillow")
    other = {p: f" (here {now[p]})" if compared and now[p] != code[p] else "" for p in packages}
    yield "Versions", ", ".join(f"{p} {code[p]}{other[p]}" for p in packages)
    processes = f"{hardware['processes']} process{'es' if hardware['processes'] > 1 else ''}"
    yield (
        "Hardware",
        f"{hardware['device']}, {hardware['precision']}, {hardware['threads']} threads, {processes}",
    )
    for name, each in c["sets"].items():
        counts = ", ".join(f"{n} {split}" for split, n in each["images"].items())
        split = "; ".join(each["notes"]) or "split as it comes with the set"
        role = "trained on" if each["trained"] else "cross test"
        yield name, f"{role}: {counts}; records {each['records']}, pixels {each['pixels']}; {split}"
    yield from ((f"--{how}", " <- ".join(_chain(each))) for how, each in c["starts"].items())


def _chain(start: Mapping[str, Any]) -> Iterator[str]:
    yield f"{start['file']} (weights {start['weights']})"
    for each in start["starts"].values():
        yield from _chain(each)
