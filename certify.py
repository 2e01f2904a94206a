"""Show where a model's figures come from, and check them by its certificate.

  python certify.py checkpoints/NAME
  python certify.py model.pkl --dataset_path /data/koniq-10k
  python certify.py model.pkl --sheet twins.html      # near duplicates
  python certify.py model.pkl --repeat                # train it again

Every best model carries a certificate. Each item of it is reproduced (and how
exactly), differs, or cannot be checked (and why). Exit code 0: everything was
reproduced; 1: something differs; 3: something could not be checked.
docs/using_models.md explains the certificate."""

import argparse
import importlib
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperiqa.base import command_line, errors, files, terminal
from hyperiqa.datasets import names, readers


def parse() -> argparse.Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = command_line.Flags(__doc__, "%(prog)s CHECKPOINT [flags]")
    flags.checkpoint()
    flags.group("data")
    place = "(default: where it was in training, else beside the scripts)"
    flags.value(
        "--dataset_path",
        (),
        f"folder or file of the training set, or NAME=PATH for each of several {place}",
        nargs="+",
        metavar="PATH",
    )
    flags.path("--spaq_path", None, f"folder of SPAQ {place}")
    flags.value(
        "--cross_test",
        (),
        f"folders of the other sets that it was tested on {place}",
        nargs="+",
        metavar="NAME=PATH",
    )
    flags.path(
        "--image_root",
        None,
        "folder from which the image paths of a CSV file start (default: as in training)",
    )
    flags.path(
        "--log_dir", None, "folder with the predictions of the run (default: as in training)"
    )
    flags.device()
    flags.workers()
    flags.cache()
    flags.group("more")
    flags.output(
        "--sheet", "write a page of the test images that look like training images", [".html"]
    )
    flags.switch(
        "--repeat",
        "repeat",
        True,
        "train again with the command in the certificate and compare the figures",
    )
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: command_line.Given) -> Iterator[str]:
    words = list(options.cross_test)
    # A single path needs no name: it is that of the only set.
    if len(options.dataset_path) > 1:
        words += options.dataset_path
    yield from [f"{word}: expected NAME=PATH" for word in words if "=" not in word]


def find_sets(
    options: argparse.Namespace, sets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Path | None]:
    """Where each data set lies: name -> path, None for its default place.

    A flag comes first, then the place that the model names if there still is something. sets: those
    of the certificate, and the records of calibrations. Raises UserError for a flag with a set that
    is none of them.
    """
    paths: dict[str, Path | None] = {}
    for name, facts_of_set in sets.items():
        path = facts_of_set["path"]
        paths[name] = files.known_place(path) if path else None
        if names.reader_name(facts_of_set["flag"]) not in readers.DEFAULT_RESIZE:
            raise errors.UserError(f"the certificate is damaged: sets.{name}.flag: no data set")
    # Only a certificate says so.
    trained = [name for name in sets if sets[name].get("trained")]
    words = [*options.cross_test, *options.dataset_path]
    # A single path without a name is that of the only set.
    if len(options.dataset_path) == 1 and "=" not in options.dataset_path[0]:
        words[-1] = f"{trained[0]}={words[-1]}"
    if options.spaq_path:
        words.append(f"spaq={options.spaq_path}")
    # A flag has csv:NAME, or spaq where the records have spaq-official.
    spellings = {sets[name]["flag"]: name for name in sets} | {name: name for name in sets}
    for word in words:
        name, _, path = word.partition("=")
        if name not in spellings:
            raise errors.UserError(f"{word}: the model names the sets {', '.join(sets)}")
        paths[spellings[name]] = Path(path).expanduser()
    # The demo brings a SPAQ of its own.
    if trained == ["demo"] and "spaq" in paths and not paths["spaq"]:
        paths["spaq"] = names.demo_folder(paths) / "spaq-test"
    return paths


def train_again(
    description: Mapping[str, Any], options: argparse.Namespace
) -> tuple[list[str], list[Any]]:
    """The command that trains the model anew, but for its places, and the checks of its settings.

    Places that the user does not name are taken from the certificate's. Without `--repeat`, a model
    that no train script made has no command; else UserError is raised.
    """
    from hyperiqa.scoring import certificate_checks, retraining, verdicts

    scripts = {
        f"{name}.py": importlib.import_module(name).SCRIPT
        for name in ("train_swin", "train_resnet", "train_timm")
    }
    try:
        settings, words = retraining.read_command(description["certificate"]["command"], scripts)
    except errors.UserError as mistake:
        problem = f"the certificate's command: {mistake}"
        if options.repeat:
            raise errors.UserError(f"{options.checkpoint}: {problem}") from None
        return [], [verdicts.Check("settings", verdicts.UNCHECKED, problem)]
    for place in ("log_dir", "image_root"):
        setattr(options, place, getattr(options, place) or getattr(settings, place))
    return words, certificate_checks.check_settings(description, settings)


def print_checks(checks: Sequence[Any]) -> None:
    """Print a line for each `Check`, and how many have each verdict."""
    # The verdicts stand below each other.
    width = max(len(check.item) for check in checks)
    print()
    for check in checks:
        note = f": {check.note}" if check.note else ""
        print(terminal.printable(f"{check.item:{width}}  {check.verdict}{note}"))
    counts = Counter(check.verdict for check in checks)
    print(
        f"\n{counts['reproduced']} reproduced, {counts['differs']} differ, "
        f"{counts['cannot be checked']} cannot be checked"
    )


def main() -> int:
    """Check a model's certificate and calibrations; returns the exit code."""
    options = parse()
    # torch is imported only once the flags are known to be right.
    from hyperiqa.base.device import set_backends
    from hyperiqa.model import checkpoints
    from hyperiqa.pages import page
    from hyperiqa.scoring import (
        calibrating,
        certificate_checks,
        quality_model,
        retraining,
        verdicts,
    )
    from hyperiqa.training.sets import near_duplicates_note

    set_backends(deterministic=True)
    path = checkpoints.find_model(options.checkpoint)
    state, description = certificate_checks.read_certificate(path)
    certified = description["certificate"]
    paths = find_sets(options, {**calibrating.records_of(description), **certified["sets"]})
    command, checks = train_again(description, options)
    # The texts stand below each other.
    for title, text in certificate_checks.facts(path.name, description):
        line = f"{title:12} {text}"
        print(textwrap.fill(line, 100, subsequent_indent=" " * 13, break_on_hyphens=False))

    model = quality_model.load(path, options.device, workers=options.workers)
    twins: list[Any] = []
    checks += certificate_checks.check_headline(description)
    checks += certificate_checks.check_file(state, description, options.log_dir or Path("logs"))
    checks += certificate_checks.check_sets(model, options, paths, twins)
    if options.repeat:
        command += retraining.words_of_places(certified, paths, options)
        checks += retraining.check_retrained(description, command)
    checks += calibrating.check(model, options, paths)

    # Without a verdict: the figures are reproduced, but they may be better than they should be.
    if twins:
        print(f"\n{near_duplicates_note(twins)}")
    if options.sheet:
        page.draw_pairs(options.sheet, f"Near duplicates, {description['run']}", twins)
        print(f"{options.sheet}: page of {errors.counted(len(twins), 'pair')}", file=sys.stderr)
    print_checks(checks)
    found_verdicts = {check.verdict for check in checks}
    # What differs weighs more than what could not be checked.
    if verdicts.DIFFERS in found_verdicts:
        return 1
    return 3 if verdicts.UNCHECKED in found_verdicts else 0


if __name__ == "__main__":
    command_line.run_tool(main)
