"""Show where a model's figures come from, and check them: the certificate that every best model carries.

python certify.py checkpoints/NAME                          # sets where they were in training, else beside the scripts
python certify.py model.pkl --dataset_path /data/koniq-10k --spaq_path /data/spaq --cross_test livec=/data/livec
python certify.py model.pkl --sheet twins.html     # test images that look like training images, side by side
python certify.py model.pkl --repeat               # train it anew from the certificate alone, and compare

Each item is reproduced (and how exactly), differs, or cannot be checked (and why). Exit code 0: all was reproduced; 1:
something differs; 3: something could not be checked. docs/using_models.md"""  # noqa: E501  (the text of --help)

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError, first_five, reading_file
from hyperiqa.base.files import HERE


def parse() -> argparse.Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = Flags(__doc__, "%(prog)s CHECKPOINT [flags]")
    flags.checkpoint()
    flags.group("data")
    place = "where it lies (default: as in training, else beside the scripts)"
    flags.value(
        "--dataset_path",
        (),
        f"the set that it was trained on: {place}; of several: NAME=PATH …",
        nargs="+",
        metavar="PATH",
    )
    flags.path("--spaq_path", None, f"SPAQ: {place}")
    flags.value(
        "--cross_test", (), f"its other cross tests: {place}", nargs="+", metavar="NAME=PATH"
    )
    flags.path("--image_root", None, "where the image paths of a CSV set start")
    flags.path("--log_dir", Path("logs"), "where the run's predictions are")
    flags.device()
    flags.workers()
    flags.cache()
    flags.group("more")
    flags.output(
        "--sheet", "write the near duplicates of training images among the test images", [".html"]
    )
    flags.switch("--repeat", "repeat", True, "train anew by the certificate's command, and compare")
    return flags.parse(None, _problems)


def _problems(options: argparse.Namespace, given: Given) -> Iterator[str]:
    words = list(options.cross_test)
    # A single path needs no name: it is that of the only set.
    if len(options.dataset_path) > 1:
        words += options.dataset_path
    yield from [f"{word}: expected NAME=PATH" for word in words if "=" not in word]


def find_sets(
    options: argparse.Namespace, sets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Path | None]:
    """Where each data set of a certificate lies: name -> path, None for its default place.

    A flag comes first, then the place of the training if there still is something. sets: those of
    the certificate. Raises UserError for a flag with a set that is none of them.
    """
    paths: dict[str, Path | None] = {}
    for name, facts_of_set in sets.items():
        path = facts_of_set["path"]
        paths[name] = Path(path) if path and Path(path).exists() else None
    trained = [name for name in sets if sets[name]["trained"]]
    words = [*options.cross_test, *options.dataset_path]
    # A single path without a name is that of the only set.
    if len(options.dataset_path) == 1 and "=" not in options.dataset_path[0]:
        words[-1] = f"{trained[0]}={words[-1]}"
    if options.spaq_path:
        words.append(f"spaq={options.spaq_path}")
    for word in words:
        name, _, path = word.partition("=")
        if name not in sets:
            raise UserError(f"{word}: the certificate is of {', '.join(sets)}")
        paths[name] = Path(path).expanduser()
    # The demo brings a SPAQ of its own.
    if trained == ["demo"] and "spaq" in paths and not paths["spaq"]:
        paths["spaq"] = (paths["demo"] or HERE / "demo") / "spaq-test"
    return paths


def read_certificate(path: Path) -> tuple[Mapping, dict[str, Any], list[tuple[str, str]]]:
    """A model file's state dict, its description, and its certificate in words.

    Raises UserError if it has no certificate, or one that is damaged or of another format.
    """
    from hyperiqa.model import checkpoints
    from hyperiqa.scoring import certificate_checks
    from hyperiqa.training import certificate

    state, description = checkpoints.load_model(path)
    certificate_format = description.get("certificate", {}).get("format")
    if certificate_format != certificate.FORMAT:
        other_format = f"its certificate is of format {certificate_format}"
        reason = "carries no certificate" if certificate_format is None else other_format
        raise UserError(f"{path}: {reason}; expected a best model of a newer run")
    with reading_file(path, "its certificate is damaged", KeyError, TypeError, AttributeError):
        facts = list(certificate_checks.facts(path.name, description))
    return state, description, facts


def print_checks(checks: Sequence[Any]) -> None:
    """Print a line for each `Check`, and how many have each verdict."""
    # The verdicts stand below each other.
    width = max(len(check.item) for check in checks)
    print()
    for check in checks:
        note = f": {check.note}" if check.note else ""
        print(f"{check.item:{width}}  {check.verdict}{note}")
    counts = Counter(check.verdict for check in checks)
    print(
        f"\n{counts['reproduced']} reproduced, {counts['differs']} differ, "
        f"{counts['cannot be checked']} cannot be checked"
    )


def main() -> int:
    """Check a model's certificate; returns the exit code."""
    options = parse()
    # torch is imported only once the flags are known to be right.
    from hyperiqa.base.device import set_backends
    from hyperiqa.model import checkpoints
    from hyperiqa.pages import page
    from hyperiqa.scoring import certificate_checks, quality_model

    set_backends(deterministic=True)
    path = checkpoints.find_model(options.checkpoint)
    state, description, facts = read_certificate(path)
    # The texts stand below each other.
    for title, text in facts:
        line = f"{title:12} {text}"
        print(textwrap.fill(line, 100, subsequent_indent=" " * 13, break_on_hyphens=False))

    model = quality_model.load(path, options.device, workers=options.workers)
    set_paths = find_sets(options, description["certificate"]["sets"])
    twins: list[Any] = []
    checks = [
        *certificate_checks.check_file(state, description, options.log_dir),
        *certificate_checks.check_sets(model, options, set_paths, twins),
    ]
    if options.repeat:
        checks += certificate_checks.check_retrained(description, set_paths)

    # Without a verdict: the figures are reproduced, but they may be better than they should be.
    if twins:
        pairs = first_five(f"{test} ~ {training}" for (test, _), (training, _) in twins)
        print(
            f"\nNear duplicates: {len(twins)} pairs of test and training images look alike: {pairs}"
        )
    if options.sheet:
        page.draw_pairs(options.sheet, f"Near duplicates, {description['run']}", twins)
    print_checks(checks)
    verdicts = {check.verdict for check in checks}
    # What differs weighs more than what could not be checked.
    if certificate_checks.DIFFERS in verdicts:
        return 1
    return 3 if certificate_checks.UNCHECKED in verdicts else 0


if __name__ == "__main__":
    run_tool(main)
