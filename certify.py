"""Show where a model's figures come from, and check them: the certificate that every best model carries.

python certify.py checkpoints/NAME                          # sets where they were in training, else beside the scripts
python certify.py model.pkl --dataset_path /data/koniq-10k --spaq_path /data/spaq --cross_test livec=/data/livec
python certify.py model.pkl --sheet twins.html     # test images that look like training images, side by side
python certify.py model.pkl --repeat               # train it anew from the certificate alone, and compare

Each item is reproduced (and how exactly), differs, or cannot be checked (and why). Exit code 0: all was reproduced; 1:
something differs; 3: something could not be checked. docs/using_models.md"""

import argparse
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError, first_five, reading_file
from hyperiqa.base.files import HERE


def parse() -> argparse.Namespace:
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
    words = [*options.cross_test, *(options.dataset_path if len(options.dataset_path) > 1 else ())]
    yield from (f"{word}: expected NAME=PATH" for word in words if "=" not in word)


def places(options: argparse.Namespace, sets: Mapping[str, Mapping]) -> dict[str, Path | None]:
    """Where each set lies: as asked for, else as in training where it is still there, else None, its default place."""
    there = {name: Path(each["path"] or "") for name, each in sets.items()}
    found = {
        name: path if sets[name]["path"] and path.exists() else None for name, path in there.items()
    }
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


def main() -> int:
    options = parse()
    from hyperiqa.base.device import set_backends
    from hyperiqa.model import checkpoints  # torch: only once the flags are known to be right
    from hyperiqa.pages import page
    from hyperiqa.scoring import certificate_checks, quality_model
    from hyperiqa.training import certificate

    set_backends(deterministic=True)
    path = checkpoints.find_model(options.checkpoint)
    state, d = checkpoints.load_model(path)
    if (form := d.get("certificate", {}).get("format")) != certificate.FORMAT:
        found = "carries no certificate" if form is None else f"its certificate is of format {form}"
        raise UserError(f"{path}: {found}; expected a best model of a newer run")
    with reading_file(path, "its certificate is damaged", KeyError, TypeError, AttributeError):
        facts = list(certificate_checks.facts(path.name, d))
    for title, text in facts:
        print(
            textwrap.fill(
                f"{title:12} {text}", 100, subsequent_indent=" " * 13, break_on_hyphens=False
            )
        )
    model = quality_model.load(path, options.device, workers=options.workers)
    where, twins = places(options, d["certificate"]["sets"]), list[Any]()
    checks = [
        *certificate_checks.check_file(state, d, options.log_dir),
        *certificate_checks.check_sets(model, options, where, twins),
    ]
    checks += certificate_checks.check_again(d, where) if options.repeat else ()
    if twins:
        said = first_five(f"{test} ~ {train}" for (test, _), (train, _) in twins)
        print(
            f"\nNear duplicates: {len(twins)} pairs of test and training images look alike: {said}"
        )
    if options.sheet:
        page.draw_pairs(options.sheet, f"Near duplicates, {d['run']}", twins)
    wide = max(len(check.what) for check in checks)
    print(
        "\n"
        + "\n".join(f"{c.what:{wide}}  {c.verdict}{': ' if c.how else ''}{c.how}" for c in checks)
        + "\n"
    )
    verdicts = (
        certificate_checks.REPRODUCED,
        certificate_checks.DIFFERS,
        certificate_checks.UNCHECKED,
    )
    reproduced, differ, unchecked = (
        sum(c.verdict == verdict for c in checks) for verdict in verdicts
    )
    print(f"{reproduced} reproduced, {differ} differ, {unchecked} cannot be checked")
    return 1 if differ else 3 if unchecked else 0


if __name__ == "__main__":
    run_tool(main)
