"""The command of a certificate: it comes from a file, so settings are taken from it, never words.

`certify.py --repeat` trains by it. Its words are parsed as a train script parses them, and the
settings that figures depend on are written again from their parsed values.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from hyperiqa.base.errors import UserError
from hyperiqa.training.flags import Script, train_flags
from hyperiqa.training.options import train_options
from hyperiqa.training.run_files import NOT_FIGURES

# Settings that no command of a file decides. Sets and starting models lie where the certificate
# says, once they were checked; for what is left, such as launchers and outputs, there is no need.
# The device stays, because another one rounds otherwise, and so does the permission without which
# a run on overlapping sets is refused.
NOT_REPEATED = (NOT_FIGURES - {"device", "allow_overlap"}) | {"dataset", "backbone_weights"}


def read_command(
    words: Sequence[str], scripts: Mapping[str, Script]
) -> tuple[Namespace, list[str]]:
    """The settings of a certificate's command, and the words that repeat those of its figures.

    words: of the certificate. scripts: name -> what the script offers. The settings are as of
    `train_options`; the words begin with the script and lack all of `NOT_REPEATED`. Raises
    UserError where these are no words of one of the scripts.
    """
    name, *flag_words = words
    script = scripts.get(name)
    if script is None:
        raise UserError(f"{name}: expected one of {', '.join(scripts)}")
    # The parser would print and leave.
    if any(word.startswith(("-h", "--help", "--version")) for word in flag_words):
        raise UserError("it asks for help")
    flags = train_flags(None, script)
    given = flags.given(flag_words)
    repeated = {name: given[name] for name in given if name not in NOT_REPEATED}
    repeated_words = flags.words_of(repeated)
    # A value of several words might begin like a flag.
    if flags.given(repeated_words) != repeated:
        raise UserError("a value that looks like a flag")
    options = train_options(flag_words, None, script, checked=False)
    return options, [name, *repeated_words]
