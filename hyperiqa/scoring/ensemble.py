"""Several models as one: the mean of their scores, on the scale of the first model."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError
from hyperiqa.datasets import readers, records
from hyperiqa.model import checkpoints
from hyperiqa.scoring import quality_model, score_files


class Ensemble(quality_model.QualityModel):
    """Scores images by the mean of several models' scores, on the scale of the first model.

    members: the models. Each of them prepares an image as in its own training; the image is decoded
    once for all members that prepare it alike.
    description: the first model's, without its calibrations, which hold for its own scores alone.
    """

    def __init__(self, members: Sequence[quality_model.QualityModel]):
        self.members = members
        self.description = {**members[0].description, "calibration": {}}
        self.hardware = members[0].hardware

    @property
    def made_with(self) -> str:
        # Such as `weights=1a2b+3c4d resize=512x384`: what all members share stands there once.
        settings = []
        for first, *others in zip(*(member.made_with.split() for member in self.members)):
            values = [word.partition("=")[2] for word in others]
            differ = any(word != first for word in others)
            settings.append("+".join([first, *values]) if differ else first)
        return " ".join(settings)

    def patches(self, image: quality_model.ImageLike) -> Any:
        """A list with the patches of each member: see `QualityModel.patches`."""
        settings = [score_files.settings_text(member.description) for member in self.members]
        patches = {
            text: member.patches(image)
            for text, member in dict(zip(settings, self.members, strict=True)).items()
        }
        return [patches[text] for text in settings]

    def score_patches(
        self, patches: list[Any], batch_size: int = quality_model.SCORE_BATCH
    ) -> np.ndarray:
        scores = [
            member.score_patches([image[i] for image in patches], batch_size)
            for i, member in enumerate(self.members)
        ]
        return averaged([member.description for member in self.members], scores)


def averaged(descriptions: Sequence[Mapping[str, Any]], scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several models' scores of the same images, on the scale of the first model.

    The nominal range of each model is mapped to that of the first one, the best score to the best
    score. scores: (N,) for each of the descriptions. Returns (N,).
    """
    scales = [
        records.scale_of(data, data, "range") for data in map(readers.nominal_set, descriptions)
    ]
    return scales[0].own(
        np.mean(
            [scale.common(values) for scale, values in zip(scales, scores, strict=True)], axis=0
        )
    )


def load_members(
    options: Namespace, *settings: str
) -> Iterator[tuple[str, quality_model.QualityModel]]:
    """Load the models of a command, and say what is assumed of them; yields (path, model).

    options: have `checkpoint`, `also` and, in `predict.py`, `scale`. settings: the names of those
    that `load` takes. Raises UserError.
    """
    paths = [*map(checkpoints.find_model, [options.checkpoint, *options.also])]
    if len({*paths}) < len(paths):
        raise UserError(f"--also: {Counter(paths).most_common(1)[0][0]} is named twice")
    for path in paths:
        model = quality_model.load(path, **{name: getattr(options, name) for name in settings})
        if getattr(options, "scale", None) is not None:
            model.use_scale(options.scale)
        description = model.description
        if not description["described"]:
            print(
                f"{path} has no description; assumed: {description['backbone']}, fusion "
                f"{description['fusion']}, patch {description['patch_size']}, resize "
                f"{description['resize']}, crops {model.crops}, scores of "
                f"{score_files.scale_text(description)}",
                file=sys.stderr,
            )
        yield str(path), model
