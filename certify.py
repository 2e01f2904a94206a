"""Show where a model's figures come from, and check them: the certificate that every best model carries.

python certify.py checkpoints/NAME                                          # on the sets in their default places
python certify.py model.pkl --dataset_path /data/koniq-10k --spaq_path /data/spaq
python certify.py model.pkl --dataset_path koniq-10k=/data/k kadid-10k=/data/d --cross_test livec=/data/livec
python certify.py model.pkl --sheet twins.html     # test images that look like training images, side by side
python certify.py model.pkl --repeat               # train it anew from the certificate alone, and compare

Each item is reproduced (and how exactly), differs (by what), or cannot be checked (and why). Exit code 0: all was
reproduced; 1: something differs; 3: something could not be checked. Figures count as reproduced where they agree to
four decimals. The certificate holds digests, not signatures: it shows what changed, not who changed it."""

import argparse
import math
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import Flags, Given, run_tool
from common.cluster import SETTINGS
from common.errors import UserError, first_five
from common.files import HERE
from common.run_files import read_predictions

REPRODUCED, DIFFERS, UNCHECKED = "reproduced", "differs", "cannot be checked"
TOLERANCE = 5e-5


@dataclass(frozen=True)
class Check:
    what: str
    verdict: str
    how: str = ""


def parse() -> argparse.Namespace:
    flags = Flags(__doc__, "%(prog)s CHECKPOINT [flags]")
    flags.words("checkpoint", "model file, or the folder of its run", type=Path, metavar="CHECKPOINT")
    flags.group("data")
    place = "where it lies (default: as in training, else beside the scripts)"
    flags.value("--dataset_path", (), f"the set that it was trained on: {place}; of several: NAME=PATH …", nargs="+",
                metavar="PATH")  # fmt: skip
    flags.path("--spaq_path", None, f"SPAQ: {place}")
    flags.value("--cross_test", (), f"its other cross tests: {place}", nargs="+", metavar="NAME=PATH")
    flags.path("--image_root", None, "where the image paths of a CSV set start")
    flags.path("--log_dir", Path("logs"), "where the run's predictions are")
    flags.device()
    flags.workers()
    flags.cache()
    flags.group("more")
    flags.output("--sheet", "write the near duplicates of training images among the test images", [".html"])
    flags.switch("--repeat", "repeat", True, "train anew by the certificate's command, and compare")
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    words = [*options.cross_test, *(options.dataset_path if len(options.dataset_path) > 1 else ())]
    yield from (f"{word}: expected NAME=PATH" for word in words if "=" not in word)
    if not options.checkpoint.exists():
        yield f"{options.checkpoint}: no such file or folder"


def compared(what: str, own: Sequence[float | None], found: Sequence[float]) -> Check:
    """A figure of the certificate, alone or with its interval, beside what it is found to be; undefined is None."""
    gaps = [abs(a - b) if a is not None else float(b == b) for a, b in zip(own, found)]
    gap = max(math.inf if math.isnan(gap) else gap for gap in gaps)
    how = "exactly" if gap == 0 else f"to {gap:.1g}" if gap <= TOLERANCE else f"now {_shown(found)}"
    return Check(f"{what} {_shown(own)}", REPRODUCED if gap <= TOLERANCE else DIFFERS, how)


def _shown(figure: Sequence[float | None]) -> str:
    value, *bounds = (f"{math.nan if each is None else each:.4f}" for each in figure)
    return f"{value} [{' '.join(bounds)}]" if bounds else value


def same(what: str, own: object, found: object) -> Check:
    return Check(what, REPRODUCED if own == found else DIFFERS, "" if own == found else f"{own} -> {found}")


def places(options: argparse.Namespace, sets: Mapping[str, Mapping]) -> dict[str, Path | None]:
    """Where each set lies: as asked for, else as in training where it is still there, else None, its default place."""
    there = {name: Path(each["path"] or "") for name, each in sets.items()}
    found = {name: path if sets[name]["path"] and path.exists() else None for name, path in there.items()}
    trained = [name for name, each in sets.items() if each["trained"]]
    words = [*options.cross_test, *options.dataset_path]
    if len(options.dataset_path) == 1 and "=" not in options.dataset_path[0]:
        words[-1] = f"{trained[0]}={words[-1]}"
    words += [f"spaq={options.spaq_path}"] if options.spaq_path else []
    for name, _, path in (word.partition("=") for word in words):
        if name not in sets:
            raise UserError(f"{name}={path}: the certificate is of {', '.join(sets)}")
        found[name] = Path(path).expanduser()
    if trained == ["demo"] and "spaq" in found and not found["spaq"]:  # which comes with it
        found["spaq"] = (found["demo"] or HERE / "demo") / "spaq-test"
    return found


def check_file(path: Path, state: Mapping, d: Mapping[str, Any], log_dir: Path) -> Iterator[Check]:
    """What the file says of itself: the seal, the weights, the run's predictions, and what it started from."""
    import certificate
    import checkpoints

    c = d["certificate"]
    unbroken = certificate.seal_of(d) == c.get("seal")
    yield Check("seal", REPRODUCED if unbroken else DIFFERS, "" if unbroken else "the description was edited")
    yield same("weights", c["weights"], checkpoints.digest(state))
    ending = "_predictions.csv" if c["round"] == 1 else f"_round{c['round']}_predictions.csv"
    file = log_dir / f"{d['run']}{ending}"
    try:
        yield same("predictions", c["predictions"], certificate.predictions_digest(read_predictions(file)))
    except UserError as mistake:
        yield Check("predictions", UNCHECKED, str(mistake))
    for how, start in c["starts"].items():
        try:
            found = certificate.weights_of(how, Path(start["file"]))
            yield same(f"--{how} {start['file']}", start["weights"], found)
        except (UserError, OSError):
            yield Check(f"--{how} {start['file']}", UNCHECKED, "the file is not there, or no model")


def trained_sets(options: argparse.Namespace, model: Any, flags: Mapping[str, Path | None]) -> tuple[dict, dict, list]:
    """The sets that were trained on, read as by the run: (name -> decoded, part -> (scores, MOS), their data sets)."""
    import engine
    from options import settings_again
    from run_data import RunData
    from run_log import SilentLog

    d = model.description
    where = dict(trained=dict(flags), cross_test={}, allow_overlap=True, image_root=options.image_root)
    run = settings_again(d, **where, cache=options.cache, cache_dir=options.cache_dir)
    data, tested = RunData(run, d["seed"]), {}
    data.decode(model.hardware.device, SilentLog(Path(), Path()), new=True)
    for part, (images, split) in data.tests.items():
        records = images.records(split)
        scores = engine.score_set(model.net, images, records, (run.test_crop, run.test_patch_num), model.hardware)
        tested[part] = data.agreeing(images.data, scores)[1], np.array([r.score for r in records])
    return data.images, tested, list(data.trained.values())


def cross_set(options: argparse.Namespace, model: Any, flag: str, path: Path | None) -> tuple[dict, dict, list]:
    """A cross test, read as by the run; the same as of `trained_sets`."""
    from data_loader import SCORE_BATCH
    from options import settings_again
    from reading.records import Columns
    from scoring import evaluation

    d = model.description
    run = settings_again(d, image_root=options.image_root)
    (test,) = evaluation.read_sets({flag: path}, d, seed=d["seed"], lower_is_better=run.lower_is_better,
                                   columns=Columns.of(run))  # fmt: skip
    cache_dir = (options.cache_dir or HERE / "cache") if options.cache else None
    evaluation.load_images([test], model, cache_dir, run.skip_bad_images)
    evaluation.score(test, model, SCORE_BATCH)
    name = flag.removeprefix("csv:")
    return {name: test.images}, {name: (test.sign * test.scores, test.mos)}, []


def check_sets(options: argparse.Namespace, model: Any, twins: list) -> Iterator[Check]:
    """Records, pixels and figures of each set; `twins` gets the near duplicates. The sets that were trained on belong
    together, each cross test is read on its own."""
    import certificate
    from run_data import look_alikes

    c = model.description["certificate"]
    sets, where = c["sets"], places(options, c["sets"])
    trained = {each["flag"]: where[name] for name, each in sets.items() if each["trained"]}
    cross = [name for name, each in sets.items() if not each["trained"]]
    jobs: list[tuple[list[str], list[str], Any]] = [
        ([name for name in sets if name not in cross], [part for part in c["figures"] if part not in cross],
         lambda: trained_sets(options, model, trained))
    ]  # fmt: skip
    jobs += [
        ([name], [name], lambda name=name: cross_set(options, model, sets[name]["flag"], where[name])) for name in cross
    ]
    decoded: list[Any] = []
    of_training: list[Any] = []
    for names, parts, read in jobs:
        try:
            images, tested, training = read()
        except UserError as mistake:
            unread = [*(f"{name} {what}" for name in names for what in ("records", "pixels")), *parts]
            yield from (Check(what, UNCHECKED, str(mistake)) for what in unread)
            continue
        decoded, of_training = [*decoded, *images.values()], [*of_training, *training]
        for name, each in images.items():
            yield same(f"{name} records and split", sets[name]["records"], each.data.fingerprint())
            yield same(f"{name} pixels", sets[name]["pixels"], certificate.pixels(each))
        for part, figures in certificate.with_intervals(tested).items():
            for figure, bounds in figures.items():
                yield compared(f"{part} {figure.upper()}", c["figures"][part][figure], bounds)
    twins += look_alikes(decoded, of_training)


def repeated(d: Mapping[str, Any], options: argparse.Namespace) -> Iterator[Check]:
    """Train anew by the certificate's command, on the sets as they lie here, and compare weights and figures."""
    import checkpoints

    c = d["certificate"]
    script, *words = c["command"]
    if used := [word for word in words if word.removeprefix("--").partition("=")[0] in SETTINGS]:
        raise UserError(f"--repeat: the run was launched on a cluster ({first_five(used)}); expected a plain command")
    where = places(options, c["sets"])
    placed = {True: [], False: []}  # type: dict[bool, list[str]]
    for name, each in c["sets"].items():
        placed[each["trained"]].append(each["flag"] + (f"={where[name]}" if where[name] else ""))
    if "demo" not in c["sets"]:  # which finds its cross test itself
        words = _without(words, "--spaq_path", "--cross_test", "--no_spaq")
        words += ["--cross_test", *placed[False]] if placed[False] else ["--no_spaq"]
    words = [*_without(words, "--dataset", "--dataset_path"), "--dataset", *placed[True]]
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
            yield compared(f"trained anew: {part} {figure.upper()}", [own], [again["metrics"][part][figure]])


def _without(words: Sequence[str], *flags: str) -> list[str]:
    """A command's words without these flags and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.partition("=")[0] in flags
        kept += [] if dropping else [word]
    return kept


def page(path: Path, d: Mapping[str, Any]) -> Iterator[str]:
    """The certificate for a person."""
    import certificate

    c, now = d["certificate"], certificate.code()
    chosen = {"test": "on the test set", "val": "on validation images"}[c["rule"]["select_on"]]
    rows = {
        "Model": f"{path.name} of run {d['run']}",
        "Command": f"python {shlex.join(c['command'])}",
        "Chosen": f"epoch {c['epoch']} of round {c['round']}, {chosen}, seed {d['seed']}",
        "Code": f"{c['code']['hyperiqa']}, commit {c['code']['commit'][:10]}"
        + {True: ", changed since", False: "", None: ""}[c["code"]["changed"]]
        + (" (what runs here)" if c["code"]["sources"] == now["sources"] else " (other code runs here)"),
        "Versions": ", ".join(
            f"{name} {c['code'][name]}" + (f" (here {now[name]})" if now[name] != c["code"][name] else "")
            for name in ("python", "torch", "torchvision", "timm", "numpy", "scipy", "pillow")
        ),
        "Hardware": f"{c['hardware']['device']}, {c['hardware']['precision']}, "
        f"{c['hardware']['threads']} threads, {c['hardware']['processes']} process{'es' if c['hardware']['processes'] > 1 else ''}",
    }
    for name, each in c["sets"].items():
        counts = ", ".join(f"{n} {split}" for split, n in each["images"].items())
        rows[name] = f"{'trained on' if each['trained'] else 'cross test'}: {counts}; records {each['records']}, " \
            f"pixels {each['pixels']}; {'; '.join(each['notes']) or 'split as it comes with the set'}"  # fmt: skip
    rows |= {f"--{how}": text for how, each in c["starts"].items() for text in [" <- ".join(_chain(each))]}
    for name, text in rows.items():
        yield textwrap.fill(f"{name:12} {text}", 100, subsequent_indent=" " * 13, break_on_hyphens=False)


def _chain(start: Mapping[str, Any]) -> Iterator[str]:
    yield f"{start['file']} (weights {start['weights']})"
    for each in start["starts"].values():
        yield from _chain(each)


def told(checks: Sequence[Check]) -> int:
    """Show the checks; returns the exit code."""
    wide = max(len(check.what) for check in checks)
    for check in checks:
        print(f"{check.what:{wide}}  {check.verdict}{': ' if check.how else ''}{check.how}")
    counts = {verdict: sum(c.verdict == verdict for c in checks) for verdict in (REPRODUCED, DIFFERS, UNCHECKED)}
    print("\n" + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))
    return 1 if counts[DIFFERS] else 3 if counts[UNCHECKED] else 0


def main() -> int:
    options = parse()
    import certificate
    import checkpoints  # torch: only once the flags are known to be right
    import inference
    from common.device import set_backends

    set_backends(deterministic=True)
    path = checkpoints.find_model(options.checkpoint)
    state, d = checkpoints.load_model(path)
    if "certificate" not in d:
        raise UserError(f"{path}: carries no certificate; expected a best model of a run of version 0.9 or newer")
    if d["certificate"].get("format") != certificate.FORMAT:
        raise UserError(f"{path}: its certificate is of format {d['certificate'].get('format')}; expected 1")
    print("\n".join(page(path, d)) + "\n")
    model = inference.load(path, options.device, workers=options.workers)
    twins: list[Any] = []
    checks = [*check_file(path, state, d, options.log_dir), *check_sets(options, model, twins)]
    if options.repeat:
        checks += repeated(d, options)
    if twins:
        said = first_five(f"{test} ~ {train}" for (test, _), (train, _) in twins)
        print(f"Near duplicates: {len(twins)} pairs of test and training images look alike: {said}\n")
    if options.sheet:
        from scoring.sheets import draw_pairs

        draw_pairs(options.sheet, f"Near duplicates, {d['run']}", twins)
    return told(checks)


if __name__ == "__main__":
    run_tool(main)
