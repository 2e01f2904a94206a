"""The data sets of a run, and the parts of them that every epoch is tested on.

`RunData` holds the records and the decoded images of the run. `TestedParts` says which of them
every epoch is tested on, and which figure chooses the best epoch.
"""

import itertools
import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base import errors, files
from hyperiqa.datasets.records import DataSet, scale_of
from hyperiqa.images import cache, perceptual_hash
from hyperiqa.stats import intervals
from hyperiqa.training.batches import DecodedSet, bad_images, drop_bad_images
from hyperiqa.training.log import RunLog
from hyperiqa.training.read_sets import SPLITS, RunSets, read_sets

Figures = dict[str, float]


class RunData:
    """The sets that a run trains and tests on, and its cross tests, by name.

    The constructor reads only the records; `decode` then loads the images. Raises UserError.

    seed: the seed of random splits.
    trained: name -> set that the run trains on; `main` is the first of them, and `several` says
        whether there are others.
    cross: name -> cross test.
    scales: name of a trained set -> the conversion of its scores to the scale of the training.
    images: name -> decoded images of a trained set, once `decode` has run; `parts` then says what
        each epoch is tested on, and `tests` has each part -> (decoded images, their split).
    """

    def __init__(self, options: Namespace, seed: int, sets: RunSets | None = None):
        """sets: those of `read_sets`, where they were read before."""
        self.options = options
        self.trained, self.cross, self._cross_notes = sets or read_sets(options, seed)
        self.main = next(iter(self.trained.values()))
        self.several = len(self.trained) > 1
        self.scales = {
            name: scale_of(data, self.main, options.mix_scale)
            for name, data in self.trained.items()
        }
        all_sets = [*self.trained.values(), *self.cross.values()]
        self.fingerprint = {data.name: data.fingerprint() for data in all_sets}
        # Where nothing uses the votes, other ones do not make another run.
        uses = {"error": options.label_noise, "deviation": options.fidelity_sigma == "votes"}
        kinds = [kind for kind, is_used in uses.items() if is_used]
        if kinds:
            self.fingerprint["votes"] = "+".join(
                data.votes(kinds) for data in self.trained.values()
            )

    @property
    def common(self) -> DataSet:
        """The first set, on the scale that is trained on."""
        if self.options.mix_scale != "range":
            return self.main
        return replace(self.main, higher_is_better=True, nominal_range=(0.0, 100.0))

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each split of the trained sets and of each tested set."""
        numbers = [sum(len(d.split(split)) for d in self.trained.values()) for split in SPLITS]
        counts = {split: number for split, number in zip(SPLITS, numbers) if number}
        if self.several:
            counts |= {name: len(data.split("test")) for name, data in self.trained.items()}
        # A cross test scores all images of its set, in any split.
        return counts | {name: len(data.records) for name, data in self.cross.items()}

    @property
    def notes(self) -> list[str]:
        """The lines about the sets in the log."""
        all_sets = (*self.trained.values(), *self.cross.values())
        notes = [note for data in all_sets for note in data.notes]
        for name, data in self.trained.items():
            counts = [(len(data.split(split)), split) for split in SPLITS]
            listed = ", ".join(f"{number} {split} images" for number, split in counts if number)
            notes.append(f"{name}: {listed}")
            scale = self.scales[name]
            if (scale.factor, scale.offset) != (1, 0):
                notes.append(
                    f"{name}: scores become {scale.factor:g} * score {scale.offset:+g}, "
                    "on the common scale of all sets"
                )
        if self.options.label_noise:
            notes += [self._label_noise_note(data) for data in self.trained.values()]
        tested = [
            f"{name.upper()} cross test: {len(data.records)} images"
            for name, data in self.cross.items()
        ]
        return [*notes, *self._cross_notes, *tested]

    def _label_noise_note(self, data: DataSet) -> str:
        strength = self.options.label_noise
        low, high = data.range
        noise = f"{strength:g} % of {low:g}..{high:g}"
        # Images without votes get a share of the range instead of standard errors.
        voted = sum(record.error is not None for record in data.split("train"))
        if voted:
            images = errors.counted(voted, "image's", "images'")
            noise = f"{strength:g} standard errors of {images} MOS, else {noise}"
        name = f" of {data.name}" if self.several else ""
        return f"Label noise{name}: {noise}; training figures refer to the noisy MOS"

    @property
    def description(self) -> dict[str, Any]:
        """The facts about the trained sets that go into a model's description.

        `scales` says how each of several sets' scores became those of the training.
        """
        nominal_range = list(self.common.range)
        score_range = nominal_range
        if self.options.mix_scale != "range":
            mos = [record.score for record in self.main.records]
            score_range = [min(mos), max(mos)]
        description = {
            "dataset": "+".join(self.trained),
            "score_range": score_range,
            "higher_is_better": self.common.higher_is_better,
            "nominal_range": nominal_range,
        }
        if self.several:
            description["scales"] = {
                name: {
                    "factor": scale.factor,
                    "offset": scale.offset,
                    "nominal_range": list(self.trained[name].range),
                }
                for name, scale in self.scales.items()
            }
        return description

    def decode(self, device: torch.device, log: RunLog, new: bool) -> None:
        """Load the decoded images, for all rounds.

        new: whether the run is new. A run that goes on prints its findings without logging them.
        """
        options = self.options
        say = log.line if new else log.show
        decoded = self._decoded(say)
        sets = list(decoded.values())
        skipped = drop_bad_images(sets, options.skip_bad_images)
        if skipped:
            say(f"Skipped: {skipped}")
            if new:
                log.record(
                    type="skipped",
                    images={str(path): reason for path, reason in bad_images(sets).items()},
                )
        lines = [
            overlapping(sets, self.trained.values(), options.allow_overlap),
            # The log is ASCII.
            near_duplicates_note(near_duplicate_pairs(sets, self.trained.values())).replace(
                ", …", " and more"
            ),
        ]
        # Either all sets or none: a batch is cut from all sets at once.
        place = cache.put_on_gpu([images.cache for images in sets], options.cache_device, device)
        say("\n".join(filter(None, [*lines, f"Patches are cut on: {place}"])))
        self.images = {name: decoded[name] for name in self.trained}
        self.parts = TestedParts.of_run(
            options, self.images, {name: decoded[name] for name in self.cross}
        )
        self.tests = self.parts.sets

    def _decoded(self, say: Callable[[str], None]) -> dict[str, DecodedSet]:
        """The decoded images of all sets by name, each set resized as its flag says."""
        options = self.options
        cache_dir = (options.cache_dir or files.HERE / "cache") if options.cache else None
        # Settings that come from a file may leave a set out.
        resizes = {**options.cross_resize, **dict(zip(self.trained, options.mix_resize.values()))}
        decoded = {}
        for name, data in (self.trained | self.cross).items():
            decoded[name] = DecodedSet(
                data,
                resizes.get(name, options.resize),
                options.patch_size,
                options.exif_rotate,
                cache_dir,
            )
            say("\n".join(decoded[name].facts))
        return decoded

    def oriented_scores(self, data: DataSet, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A model's scores of a set's images, in two forms.

        The first is on the set's own scale if the model was trained on the set. The second has the
        direction of the set's opinions: higher scores for higher opinions.
        """
        # A cross test may have the name of a trained set, but not its scale.
        if self.trained.get(data.name) is data:
            set_scores = self.scales[data.name].own(scores)
            return set_scores, set_scores
        if data.higher_is_better == self.common.higher_is_better:
            return scores, scores
        return scores, -scores

    def draw_again(self, seed: int) -> None:
        """Begin another round, with the same images and new random splits."""
        # The cross tests stay: they have no random splits.
        redrawn = RunData(self.options, seed)
        self.main = redrawn.main
        self.trained = redrawn.trained
        self.scales = redrawn.scales
        for name, images in self.images.items():
            images.data = redrawn.trained[name]


def overlapping(sets: Iterable[DecodedSet], trained: Iterable[DataSet], allowed: bool) -> str:
    """A line for the log about training images of one set that are test images of another.

    Images with the same decoded pixels count as the same. Returns "" if there are none. Raises
    UserError if there are some and they are not allowed.
    """
    # By identity, as a cross test may have the name of a trained set.
    trained_ids = {id(data) for data in trained}
    overlaps = []
    for training_set, tested_set in itertools.permutations(sets, 2):
        if id(training_set.data) not in trained_ids:
            continue
        # Digests are of decoded pixels, so lossless copies in other formats count too.
        name_of = {
            training_set.digest(record): record.name for record in training_set.data.split("train")
        }
        for record in tested_set.data.records:
            # Files that cannot be read have no digest and do not count as copies of each other.
            twin = name_of.get(tested_set.digest(record) or None)
            if record.split != "train" and twin is not None:
                overlaps.append(
                    f"{tested_set.data.name} {record.name} = {training_set.data.name} {twin}"
                )
    if not overlaps:
        return ""
    copies = errors.counted(
        len(overlaps),
        "image of a test split is another set's training image",
        "images of a test split are another set's training images",
    )
    message = f"{copies}: {errors.first_five(overlaps)}"
    if not allowed:
        raise errors.UserError(f"{message} (--allow_overlap trains all the same)")
    return message


def near_duplicate_pairs(
    sets: Iterable[DecodedSet], trained: Iterable[DataSet]
) -> list[tuple[tuple[str, Path], ...]]:
    """Pairs of a test and a training image that look alike, each as (set and name, path)."""
    trained_ids = {id(data) for data in trained}
    tested: list[tuple] = []
    training: list[tuple] = []
    for images in sets:
        is_trained = id(images.data) in trained_ids
        for record in images.data.records:
            image = (f"{images.data.name} {record.name}", record.path)
            (training if is_trained and record.split == "train" else tested).append(
                (image, images.perceptual_hash(record))
            )
    pairs = perceptual_hash.near_duplicates(
        [code for _, code in tested], [code for _, code in training]
    )
    return [(tested[i][0], training[j][0]) for i, j in pairs]


def near_duplicates_note(pairs: list[tuple[tuple[str, Path], ...]]) -> str:
    """A line about the pairs of `near_duplicate_pairs`; "" without any."""
    alike = errors.counted(
        len(pairs),
        "pair of a test and a training image looks",
        "pairs of test and training images look",
    )
    names = errors.first_five(f"{tested[0]} ~ {training[0]}" for tested, training in pairs)
    return f"Near duplicates: {alike} alike: {names}" if pairs else ""


@dataclass(frozen=True)
class TestedParts:
    """The parts that every epoch is tested on, and by which of them the best epoch is chosen.

    sets: part -> (decoded images, their split).
    means: part -> the parts that it is the mean of, if the run trains on several sets.
    chosen: the part that chooses the best epoch.
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
        """The parts of a run.

        A single trained set gives the part `test` (and `val`). Several sets give one part each, and
        another one for their mean.
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
        # Validation comes first if there is one, and the mean comes before its sets.
        chosen = [*means, *sets][0]
        if options.select_set:
            # The sets are in the order of `--dataset`, and the flag names one of them.
            chosen = means[chosen][list(options.trained).index(options.select_set)]
        return cls(sets, means, chosen)

    @property
    def names(self) -> list[str]:
        """All parts, in the order of records."""
        return [*self.means, *self.sets]

    def with_means(self, result: Mapping[str, Figures]) -> dict[str, Figures]:
        """An epoch's figures with the means added: `train` first, then in the order of records."""
        figures: dict[str, Figures] = {}
        for part, parts in self.means.items():
            figures[part] = {
                figure: float(np.mean([result[name][figure] for name in parts]))
                for figure in result[parts[0]]
            }
        # A set's own figures replace a mean of the same name.
        figures |= result
        return {part: figures[part] for part in ("train", *self.names)}

    def epoch_arrays(self, scores: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """The scores of the epochs and the facts about their images, as arrays by name.

        scores: part -> the scores (N,) of each epoch, in the direction of the opinions.
        Returns PART_images, PART_mos and PART_error (nan where there are no votes), (N,), and
        PART_scores (E, N).
        """
        arrays: dict[str, np.ndarray] = {}
        for part, epochs in scores.items():
            images, split = self.sets[part]
            records = images.records(split)
            arrays |= {
                f"{part}_images": np.array([record.name for record in records]),
                f"{part}_mos": np.array([record.score for record in records]),
                # As floats, None becomes nan.
                f"{part}_error": np.array([record.error for record in records], float),
                # One row an epoch, of this round alone.
                f"{part}_scores": np.stack([np.asarray(epoch) for epoch in epochs]),
            }
        return arrays

    def selection_bias(self, scores: Mapping[str, Sequence]) -> float:
        """By how much choosing the epoch inflates its SRCC; nan unless test images chose it.

        scores: as of `epoch_arrays`.
        """
        parts = self.means.get(self.chosen, [self.chosen])
        if self.sets[parts[0]][1] != "test" or not scores:
            return math.nan
        arrays = self.epoch_arrays(scores)
        return intervals.selection_bias(
            [(arrays[f"{part}_scores"], arrays[f"{part}_mos"]) for part in parts]
        )
