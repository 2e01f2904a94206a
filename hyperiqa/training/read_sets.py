"""The records of the sets that a run trains and tests on.

Nothing here imports torch, so that a wrong path or table is reported at once.
"""

from argparse import Namespace

from hyperiqa.base.errors import UserError, counted
from hyperiqa.datasets import names, readers, records

SPLITS = ("train", "val", "test")


# The sets that a run trains on and its cross tests, by name, and lines about the latter.
RunSets = tuple[dict[str, records.DataSet], dict[str, records.DataSet], list[str]]


def read_sets(options: Namespace, seed: int) -> RunSets:
    """The sets of a run with these settings. seed: of random splits. Raises UserError."""
    # Without --val_fraction, the set must come with a validation split.
    official_validation = options.select_on == "val" and options.val_fraction is None
    splits = SPLITS if official_validation else ("train", "test")
    lower = names.lower_is_better_sets(
        options.lower_is_better, [*options.trained, *(options.cross_test or ())]
    )
    columns = records.Columns.of(options)
    trained = {}
    # The demo brings its own cross test, beside its images.
    spaq_root = None
    for name, path in options.trained.items():
        reader = readers.reader_of(name, path, seed, name in lower, columns)
        reader.allow_shared_content = options.allow_shared_content
        reader.source += "; --dataset_path names another place, and --dataset demo needs no data"
        data = reader.read(splits, held_out=options.val_fraction is not None)
        spaq_root = reader.spaq_root
        if options.val_fraction is not None:
            records.take_validation(data, options.val_fraction, seed)
        data.note_undefined()
        if options.fidelity_sigma == "votes":
            _check_votes(data)
        trained[data.name] = data
    return trained, *readers.read_cross_tests(options.cross_test, seed, spaq_root, lower, columns)


def _check_votes(data: records.DataSet) -> None:
    # Note of how many training images the votes are known. Raises UserError where there are none.
    training = data.split("train")
    voted = sum(bool(record.deviation) for record in training)
    if not voted:
        raise UserError(
            f"--fidelity_sigma votes: {data.name} gives no standard deviations of its votes; "
            "expected sets that do (docs/data.md names them), or --fidelity_sigma batch"
        )
    data.notes.append(
        f"{data.name}: the fidelity loss takes the standard deviations of the votes of {voted} of "
        f"{counted(len(training), 'training image')}, and their root mean square for any others"
    )
