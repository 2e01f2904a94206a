"""The check of a certificate by training again: whether everything that it says comes out again."""

import os
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperiqa.base import files, launching
from hyperiqa.model import checkpoints
from hyperiqa.scoring import calibrating, certificate_checks, verdicts
from hyperiqa.training.certificate import STARTS
from hyperiqa.training.options import figure_settings

# Fields of a description and its certificate that a repeated run may have otherwise, or that other
# checks compare. The last digits of a calibration are not the same in every process.
COMPARED = {
    *("run", "versions", "metrics", "backbone_weights", "cross_resize", "precision", "calibration"),
    *("certificate.seal", "certificate.command", "certificate.weights", "certificate.figures"),
    *("certificate.sets", "certificate.code", "certificate.hardware", "certificate.calibration"),
}


def check_retrained(
    description: Mapping[str, Any], command: Sequence[str]
) -> Iterator[verdicts.Check]:
    """Train once more, and compare all that the description says with what comes of it.

    command: a train script and its flags, but for the places where the run leaves files.
    """
    certified = description["certificate"]
    for check in certificate_checks.check_starts(certified):
        if check.verdict != verdicts.REPRODUCED:
            yield verdicts.Check("training anew", verdicts.UNCHECKED, f"{check.item}: {check.note}")
            return
    with tempfile.TemporaryDirectory(prefix="certify_") as folder:
        outputs = ["--log_dir", f"{folder}/logs", "--checkpoint_dir", folder, "--run_name", "again"]
        # Not what `auto` may come to here.
        outputs += [f"--precision={certified['hardware']['precision']}"]
        script, *words = [*command, *outputs]
        print(f"Training anew: python {script} {shlex.join(words)}", file=sys.stderr)
        # Sums are rounded in the order in which the threads share them. A certificate may name any
        # number of threads, but no system starts arbitrarily many.
        threads = min(certified["hardware"]["threads"], 256)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = launching.start_program(
            [str(files.CHECKOUT / script), *words], environment, subprocess.DEVNULL
        )
        try:
            process.wait()
        finally:
            launching.end_programs([process])
        if process.returncode:
            yield verdicts.Check(
                "training anew", verdicts.UNCHECKED, f"it ended with exit code {process.returncode}"
            )
            return
        run_folder = Path(folder, "again")
        if certified["round"] > 1:
            run_folder /= f"round{certified['round']}"
        # Read whole, before the temporary folder is removed.
        state, retrained = checkpoints.load_model(checkpoints.find_model(run_folder))
    yield verdicts.compare("trained anew: weights", certified["weights"], checkpoints.digest(state))
    yield from compare_descriptions(description, retrained)


def compare_descriptions(
    description: Mapping[str, Any], retrained: Mapping[str, Any]
) -> Iterator[verdicts.Check]:
    """Compare a description and its certificate with those of a repeated run."""
    yield from verdicts.compare_figures(
        "trained anew: ", description["certificate"]["figures"], retrained["certificate"]["figures"]
    )
    for name, calibration in retrained.get("calibration", {}).items():
        own = description.get("calibration", {}).get(name, {"record": {}})
        if "record" not in own:
            yield calibrating.compare_calibrations(f"trained anew: {name}", own, calibration)
    stated, stated_origin = _parts(description)
    current, origin = _parts(retrained)
    # Another version may say more of a model than this description does.
    current = {name: current.get(name) for name in stated}
    yield from verdicts.compare_fields("trained anew: description", stated, current)
    yield from verdicts.compare_fields(
        "trained anew: origin", stated_origin, origin, verdicts.UNCHECKED
    )


def _parts(description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # What a repeated run must say again, and by what and where it was made, which may differ.
    certified = description["certificate"]
    fields = {**figure_settings(description), **description}
    del fields["certificate"]
    origin = {
        "code": certified["code"],
        "hardware": certified["hardware"],
        # Another version may word them differently.
        "notes": {name: facts["notes"] for name, facts in certified["sets"].items()},
    }
    # The certificate's fields get longer names, because it has a seed of its own.
    fields |= {f"certificate.{name}": fact for name, fact in certified.items()}
    return {name: fields[name] for name in fields.keys() - COMPARED}, origin


def words_of_places(
    certified: Mapping[str, Any], paths: certificate_checks.Paths, options: Namespace
) -> list[str]:
    """The flags of a repeated run that say what it reads, from where, and how fast it goes.

    paths: data set -> where it lies here. options: the flags of `certify.py`.
    """
    trained, cross = certificate_checks.flags_of_sets(certified["sets"])
    words = ["--dataset", *_with_places(trained, paths)]
    words += ["--cross_test", *_with_places(cross, paths)] if cross else ["--no_spaq"]
    starts = certified["starts"]
    # Only these names: a file's own could be any flag.
    words += [f"--{flag}={starts[flag]['file']}" for flag in STARTS if flag in starts]
    # A repeated run gets these flags of `certify.py` too.
    words += [
        f"--{flag}={getattr(options, flag)}"
        for flag in ("image_root", "cache_dir", "workers")
        if getattr(options, flag) is not None
    ]
    return words if options.cache else [*words, "--no_cache"]


def _with_places(sets: Mapping[str, str], paths: certificate_checks.Paths) -> list[str]:
    return [f"{flag}={paths[name] or ''}".removesuffix("=") for flag, name in sets.items()]
