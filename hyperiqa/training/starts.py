"""Trained models that a run starts from (`--init`) or learns from (`--teacher`)."""

from argparse import Namespace
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.datasets.readers import READERS
from hyperiqa.datasets.records import DataSet
from hyperiqa.model import checkpoints
from hyperiqa.model.factory import build
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.training.contradictions import needs_pixels
from hyperiqa.training.losses import SCALELESS


class StartingModel:
    """What `--init` starts from, or `--teacher` learns from: a whole trained model, anything that `load` reads."""

    def __init__(self, path: Path):
        self.path = checkpoints.find_model(path)
        self.state, self.description = checkpoints.load_model(self.path)
        self.digest = checkpoints.digest(self.state)

    @classmethod
    def of(cls, options: Namespace) -> "StartingModel":
        """As the flags say; what they leave to the checkpoint is set in them. Raises UserError."""
        initial = cls(options.init)
        known = {
            "hyper": "conv",
            **initial.description,
        }  # before there was another, models did not say it
        for name in ("backbone", "patch_size", *HyperNet.choices):
            own, asked = known.get(name), getattr(options, name)
            if asked not in (None, own) and name != "patch_size":
                raise UserError(f"--{name} {asked}: the model of --init {options.init} has {own}")
            setattr(options, name, own if asked is None else asked)
        for problem in needs_pixels(options):
            raise UserError(problem)
        options.init_digest = initial.digest
        return initial

    @classmethod
    def teacher_of(cls, options: Namespace) -> "StartingModel":
        """The model of `--teacher`. Raises UserError where its scores are on no scale that could be learnt."""
        teacher = cls(options.teacher)
        if (loss := teacher.description.get("loss")) in SCALELESS:
            raise UserError(
                f"--teacher {options.teacher}: trained with --loss {loss}, so its scores are on no scale"
            )
        options.teacher_digest = teacher.digest
        return teacher

    def model(self, data: DataSet, options: Namespace) -> HyperNet:
        """The model, its scores brought to the scale of the data set that it is trained on next, as the flags say."""
        net = build(
            {
                **self.description,
                **{n: getattr(options, n) for n in ("patch_size", "dropout", "drop_path")},
            }
        )
        checkpoints.fill(net, self.state, self.path)
        net.rescale(*self.scale(data))
        return net

    def scale(self, data: DataSet) -> tuple[float, float]:
        """(a, b): a·score + b of a score is the same on the data set's nominal range, and points its way."""
        d = self.description
        known = d["dataset"] in READERS and READERS[d["dataset"]].nominal_range
        low, high = d.get("nominal_range") or known or d["score_range"]
        to_low, to_high = data.range
        if low == high or to_low == to_high:
            return 1.0, 0.0
        if d["higher_is_better"] != data.higher_is_better:
            to_low, to_high = to_high, to_low
        factor = (to_high - to_low) / (high - low)
        return factor, to_low - factor * low

    def explained(self, data: DataSet, how: str) -> str:
        """What a log says of it; how: what the run does with the model."""
        (a, b), d = self.scale(data), self.description
        where = f"{d['dataset']} to {data.name}"
        scale = (
            "scores stay as they are"
            if (a, b) == (1, 0)
            else f"scores become {a:g} * score {b:+g}, from {where}"
        )
        return f"{how} {self.path} (weights {self.digest}): {scale}"
