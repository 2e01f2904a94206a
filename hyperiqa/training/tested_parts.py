"""What every epoch is tested on, part by part, and what its figures choose."""

import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hyperiqa.stats import intervals
from hyperiqa.training.batches import DecodedSet

Figures = dict[str, float]


@dataclass(frozen=True)
class TestedParts:
    """The parts that every epoch is tested on, and by which of them the best epoch is chosen.

    sets: part -> (decoded images, their split).
    means: part -> the parts that it is the mean of, where the run trains on several sets.
    chosen: the part by which the best epoch is chosen.
    """

    sets: dict[str, tuple[DecodedSet, str]]
    means: dict[str, list[str]]
    chosen: str

    @classmethod
    def of_run(
        cls,
        options: Namespace,
        trained: Mapping[str, DecodedSet],
        cross: Mapping[str, DecodedSet],
    ) -> "TestedParts":
        """A single trained set gives `test` (and `val`), several one part each and their mean.

        trained, cross: the sets that the run trains on, and its cross tests, by name.
        """
        splits = ("val", "test") if options.select_on == "val" else ("test",)
        sets: dict[str, tuple[DecodedSet, str]] = {}
        means: dict[str, list[str]] = {}
        for split in splits:
            if len(trained) == 1:
                sets[split] = (next(iter(trained.values())), split)
                continue
            means[split] = []
            for name, images in trained.items():
                part = f"{name}_val" if split == "val" else name
                sets[part] = (images, split)
                means[split].append(part)
        sets |= {name: (images, "test") for name, images in cross.items()}
        # Validation comes first where there is one, and the mean before the sets that it is of.
        chosen = [*means, *sets][0]
        if options.select_set:
            # The flag names the set as `--dataset` does, which gives the sets in the same order.
            chosen = means[chosen][list(options.trained).index(options.select_set)]
        return cls(sets, means, chosen)

    @property
    def names(self) -> list[str]:
        """All parts, in the order of records."""
        return [*self.means, *self.sets]

    def with_means(self, result: Mapping[str, Figures]) -> dict[str, Figures]:
        """An epoch's figures with those of `means`: `train` first, then in the order of records."""
        figures = {}
        for part, parts in self.means.items():
            figures[part] = mean_figures([result[name] for name in parts])
        # A set's own figures come before a mean of the same name.
        figures |= result
        return {part: figures[part] for part in ("train", *self.names)}

    def epoch_arrays(self, scores: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """What the epochs scored, as arrays by name.

        scores: part -> the scores (N,) of each epoch, which rise where the opinions do.
        Returns PART_images, PART_mos and PART_error (nan where there are no votes), (N,), and
        PART_scores (E, N).
        """
        arrays = {}
        for part, epochs in scores.items():
            images, split = self.sets[part]
            records = images.records(split)
            arrays[f"{part}_images"] = np.array([record.name for record in records])
            arrays[f"{part}_mos"] = np.array([record.score for record in records])
            # As floats, None becomes nan.
            arrays[f"{part}_error"] = np.array([record.error for record in records], float)
            # One row an epoch, of this round alone.
            arrays[f"{part}_scores"] = np.stack([np.asarray(epoch) for epoch in epochs])
        return arrays

    def selection_bias(self, scores: Mapping[str, Sequence]) -> float:
        """By how much the best epoch's SRCC flatters; nan where it was not chosen on test images.

        scores: as of `epoch_arrays`.
        """
        parts = self.means.get(self.chosen, [self.chosen])
        if self.sets[parts[0]][1] != "test" or not scores:
            return math.nan
        arrays = self.epoch_arrays(scores)
        pairs = [(arrays[f"{part}_scores"], arrays[f"{part}_mos"]) for part in parts]
        return intervals.selection_bias(pairs)


def mean_figures(results: Sequence[Figures]) -> Figures:
    """The mean of each figure over several parts' results."""
    means = {}
    for figure in results[0]:
        means[figure] = float(np.mean([result[figure] for result in results]))
    return means
