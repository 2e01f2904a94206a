"""The command of a certificate, by which `certify.py --repeat` trains.

It comes from a file, so its words are never run as they are: they are parsed as a train script
parses them, and the settings that figures depend on are written again from the parsed values.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from hyperiqa.base.errors import UserError
from hyperiqa.training import options, run_files
from hyperiqa.training.flags import Script, train_flags

# Settings that a certificate's command does not decide. Data sets and starting models are read from
# where the certificate says, after they were checked; the rest, such as launchers and outputs,
# changes no figure. The device is kept, because another one rounds differently, and so is the
# permission to train on overlapping sets, which are refused without it.
NOT_REPEATED = (run_files.NOT_FIGURES - {"device", "allow_overlap"}) | {
    "dataset",
    "backbone_weights",
}


def read_command(
    words: Sequence[str], scripts: Mapping[str, Script]
) -> tuple[Namespace, list[str]]:
    """The settings of a certificate's command, and the words that repeat those of its figures.

    words: the certificate's command. scripts: name -> what the script offers. The settings are
    those of `train_options`; the words begin with the script and lack all of `NOT_REPEATED`. Raises
    UserError where the command is not one of these scripts with valid flags.
    """
    name, *flag_words = words
    script = scripts.get(name)
    if script is None:
        raise UserError(f"{name}: expected one of {', '.join(scripts)}")
    # The parser would print its help and end the program.
    if any(word.startswith(("-h", "--help", "--version")) for word in flag_words):
        raise UserError("it asks for help")
    flags = train_flags(None, script)
    given = flags.given(flag_words)
    repeated = {name: given[name] for name in given if name not in NOT_REPEATED}
    repeated_words = flags.words_of(repeated)
    # A value of several words might begin like a flag.
    if flags.given(repeated_words) != repeated:
        raise UserError("a value that looks like a flag")
    return options.train_options(flag_words, None, script, checked=False), [name, *repeated_words]
