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

from hyperiqa.base import errors, files, launching
from hyperiqa.model import checkpoints
from hyperiqa.scoring import calibrating, certificate_checks, verdicts
from hyperiqa.training import certificate, flags, options as run_options, run_files

# Fields of a description and its certificate that a repeated run may have otherwise, or that other
# checks compare. The last digits of a calibration are not the same in every process.
COMPARED = {
    *("run", "versions", "metrics", "backbone_weights", "cross_resize", "precision", "calibration"),
    *("certificate.seal", "certificate.command", "certificate.weights", "certificate.figures"),
    *("certificate.sets", "certificate.code", "certificate.hardware", "certificate.calibration"),
}


# Settings that a certificate's command does not decide. Data sets and starting models are read from
# where the certificate says, after they were checked; the rest, such as launchers and outputs,
# changes no figure. The device is kept, because another one rounds differently, and so is the
# permission to train on overlapping sets, which are refused without it.
NOT_REPEATED = (run_files.NOT_FIGURES - {"device", "allow_overlap"}) | {
    "dataset",
    "backbone_weights",
}


def read_command(
    words: Sequence[str], scripts: Mapping[str, flags.Script]
) -> tuple[Namespace, list[str]]:
    """The settings of a certificate's command, and the words that repeat those of its figures.

    The command comes from a file, so its words are never run as they are: they are parsed as a
    train script parses them, and the settings that figures depend on are written again from the
    parsed values.

    words: the certificate's command. scripts: name -> what the script offers. The settings are
    those of `train_options`; the words begin with the script and lack all of `NOT_REPEATED`. Raises
    UserError where the command is not one of these scripts with valid flags.
    """
    name, *flag_words = words
    script = scripts.get(name)
    if script is None:
        raise errors.UserError(f"{name}: expected one of {', '.join(scripts)}")
    # The parser would print its help and end the program.
    if any(word.startswith(("-h", "--help", "--version")) for word in flag_words):
        raise errors.UserError("it asks for help")
    script_flags = flags.train_flags(None, script)
    given = script_flags.given(flag_words)
    repeated = {name: given[name] for name in given if name not in NOT_REPEATED}
    repeated_words = script_flags.words_of(repeated)
    # A value of several words might begin like a flag.
    if script_flags.given(repeated_words) != repeated:
        raise errors.UserError("a value that looks like a flag")
    return (
        run_options.train_options(flag_words, None, script, checked=False),
        [name, *repeated_words],
    )


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
        process = launching.start_program(
            [str(files.CHECKOUT / script), *words],
            {**os.environ, "OMP_NUM_THREADS": str(threads)},
            subprocess.DEVNULL,
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
    fields = {**run_options.figure_settings(description), **description}
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
    words += [f"--{flag}={starts[flag]['file']}" for flag in certificate.STARTS if flag in starts]
    # A repeated run gets these flags of `certify.py` too.
    words += [
        f"--{flag}={getattr(options, flag)}"
        for flag in ("image_root", "cache_dir", "workers")
        if getattr(options, flag) is not None
    ]
    return words if options.cache else [*words, "--no_cache"]


def _with_places(sets: Mapping[str, str], paths: certificate_checks.Paths) -> list[str]:
    return [f"{flag}={paths[name] or ''}".removesuffix("=") for flag, name in sets.items()]
