"""The rows of a comparison: single runs, or all seeds of a setting together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hyperiqa.runs.reading import DONE, Run

# Settings that runs of one group may have differently.
_NOT_OF_A_GROUP = {"seed", "device", "code", "images"}


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the table: one run, or the runs of one setting with different seeds."""

    name: str
    runs: tuple[Run, ...]

    def mean(self, figure: Callable[[Run], float]) -> float:
        """The mean of a figure over the entry's runs."""
        return float(np.mean([figure(run) for run in self.runs]))

    def setting(self, name: str) -> str:
        """Its runs' values of a setting; `?` where a log doesn't hold it."""
        return ",".join(dict.fromkeys(run.settings.get(name, "?") for run in self.runs))


def group(runs: Sequence[Run]) -> tuple[list[Entry], list[str]]:
    """Entries of the runs with equal settings but for the seed, and notes on what was left out.

    A run that is not done is no seed of a setting, nor is the older of two with the same seed. Logs
    that don't hold their settings (the public code's) are grouped with the other rounds of their
    file alone.
    """
    notes: list[str] = []
    # Equal settings and numbers of images -> seed -> run.
    groups: dict[tuple, dict[str, Run]] = {}
    # By age, so that of two runs with one seed the newer stays.
    for run in sorted(runs, key=lambda run: run.path.stat().st_mtime):
        if run.status not in DONE:
            notes.append(f"{run.name}: {run.status}, left out of the groups")
            continue
        equal = {name: value for name, value in run.settings.items() if name not in _NOT_OF_A_GROUP}
        # Of a log without settings nothing says that another file's run had the same.
        if "seed" not in run.settings:
            equal["file"] = str(run.path)
        members = groups.setdefault((*sorted(equal.items()), *sorted(run.images.items())), {})
        seed = run.settings.get("seed", run.name)
        if seed in members:
            notes.append(f"{members[seed].name}: seed {seed} once more in {run.name}, left out")
        members[seed] = run
    runs_of_groups = [tuple(members.values()) for members in groups.values()]
    names = _group_names([seeds[0] for seeds in runs_of_groups])
    entries = []
    for name, seeds in zip(names, runs_of_groups):
        # Groups that no known setting tells apart are called after their first run.
        is_unique = name and names.count(name) == 1
        entries.append(Entry(name if is_unique else seeds[0].name, seeds))
    return entries, notes


def _group_names(runs: Sequence[Run]) -> list[str]:
    """The settings that tell each group's run from the other groups.

    What most of the groups have goes without saying.
    """
    differing = [name for name in differing_settings(runs) if name not in _NOT_OF_A_GROUP]
    words: list[list[str]] = [[] for _ in runs]
    for name in differing:
        values = [run.settings.get(name, "?") for run in runs]
        for words_of_run, value in zip(words, values):
            if 2 * values.count(value) <= len(runs):
                words_of_run.append(f"{name}={value}")
    usual = "as most" if differing else ""
    return [" ".join(words_of_run) or usual for words_of_run in words]


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that two of the runs are known to have differently."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(value)
    return [name for name in values if len(values[name]) > 1]
