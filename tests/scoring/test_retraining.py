from hyperiqa.scoring.retraining import NOT_REPEATED, read_command
from hyperiqa.training.flags import train_flags
from hyperiqa.training.options import figure_settings, train_options
from train_timm import SCRIPT

SETS = ["--dataset", "csv:one=one.csv", "csv:two=two.csv"]
# Where a word of its choices or a number is no value.
WORDS = {
    "--dataset": SETS[1:],
    "--mix_patches": ["3", "4"],
    "--select_set": ["csv:two"],
    "--lower_is_better": ["one", "two"],
    "--cross_test": ["spaq=place"],
    "--resize": ["100x90"],
    "--backbone": ["-resnet18"],
    "--training_fixes": ["filter"],
    "--milestones": ["2", "3"],
    "--val_fraction": ["0.25"],
    "--device": ["cuda:3"],
    "--gpus_per_node": ["4"],
    "--slurm": ["partition=gpu"],
}


def words_of(action):
    """A flag with a value that is not its default."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [flag]
    if flag in WORDS:
        flag_words = WORDS[flag]
        return [f"{flag}={flag_words[0]}"] if action.nargs is None else [flag, *flag_words]
    if action.choices:
        return [flag, list(action.choices)[-1]]
    return [flag, {int: "77", float: "0.3"}.get(action.type, "name")]


def test_each_flag_is_repeated_or_one_that_no_file_decides():
    actions = train_flags(None, SCRIPT).parser._actions
    repeated_flags = set()
    for action in actions:
        if action.dest in ("help", "version"):
            continue
        words = words_of(action)
        # Flags of several sets need them; one place is of a single set.
        if action.dest not in ("dataset", "dataset_path"):
            words = [*SETS, *words]
        options, repeated = read_command(["train_timm.py", *words], {"train_timm.py": SCRIPT})
        assert repeated[0] == "train_timm.py"
        assert bool(repeated[1:]) == (action.dest not in NOT_REPEATED), words
        if repeated[1:]:
            repeated_flags.add(action.dest)
            again = train_options([*SETS, *repeated[1:]], None, SCRIPT, checked=False)
            assert figure_settings(again) == figure_settings(options)
            assert vars(again)[action.dest] == vars(options)[action.dest]
    default = figure_settings(train_options([], None, SCRIPT))
    # These follow from flags that the sets and the starting models replace.
    derived = {"dataset", "backbone_weights", "cross_resize", "mix_resize"}
    derived |= {"init_digest", "teacher_digest"}
    assert repeated_flags == (default.keys() - derived) | {"device", "allow_overlap"}
