"""Trained models that a run starts from (`--init`) or learns from (`--teacher`)."""

from argparse import Namespace
from pathlib import Path

from hyperiqa.base.errors import UserError
from hyperiqa.datasets import readers, records
from hyperiqa.model import checkpoints, factory, hypernet
from hyperiqa.training import contradictions, losses


class StartingModel:
    """A trained model that a run starts from or learns from, from a file for `load_model`."""

    def __init__(self, path: Path):
        self.path = checkpoints.find_model(path)
        self.state, self.description = checkpoints.load_model(self.path)
        self.digest = checkpoints.digest(self.state)

    @classmethod
    def of(cls, options: Namespace) -> "StartingModel":
        """The model of `--init`.

        Choices without a flag are taken from the checkpoint and set in `options`. Raises UserError
        if a flag contradicts the checkpoint.
        """
        initial = cls(options.init)
        # Models made before there was a second head or hyper network do not name theirs.
        description = {"head": "hyper", "hyper": "conv", **initial.description}
        for name in ("backbone", "patch_size", *factory.CHOICES):
            trained_with = description.get(name)
            flag_value = getattr(options, name)
            if flag_value is None:
                setattr(options, name, trained_with)
            # Adaptive pools let a model go on with patches of another size.
            elif flag_value != trained_with and name != "patch_size":
                raise UserError(
                    f"--{name} {flag_value}: the model of --init {options.init} has {trained_with}"
                )
        # The fusion, which may need whole stage maps, is known only now.
        for problem in contradictions.needs_pixels(options):
            raise UserError(problem)
        options.init_digest = initial.digest
        return initial

    @classmethod
    def teacher_of(cls, options: Namespace) -> "StartingModel":
        """The model of `--teacher`.

        Raises UserError if its loss does not put scores on a scale that could be learnt.
        """
        teacher = cls(options.teacher)
        loss = teacher.description.get("loss")
        if loss in losses.SCALELESS:
            raise UserError(
                f"--teacher {options.teacher}: trained with --loss {loss}, "
                "so its scores are on no scale"
            )
        options.teacher_digest = teacher.digest
        return teacher

    def model(self, data: records.DataSet, options: Namespace) -> hypernet.QualityNet:
        """The model with the regularisation of the flags and with scores on the scale of `data`.

        Raises UserError if its weights do not fit, as with some encoders and another patch size.
        """
        flags = {name: getattr(options, name) for name in ("patch_size", "dropout", "drop_path")}
        net = factory.build({**self.description, **flags}, self.state)
        try:
            checkpoints.fill(net, self.state, self.path)
        except UserError as problem:
            trained_size = self.description.get("patch_size")
            if trained_size == options.patch_size:
                raise
            raise UserError(
                f"--patch_size {options.patch_size}: expected {trained_size}, the size that the "
                f"model was trained with: {problem}"
            ) from None
        net.rescale(*self.scale(data))
        return net

    def scale(self, data: records.DataSet) -> tuple[float, float]:
        """The factor and the offset that bring the model's scores to the scale of a data set.

        They map the nominal range that the model was trained on to the range of `data`, the best
        score to the best score.
        """
        low, high = readers.nominal_set(self.description).range
        new_low, new_high = data.range
        # A range of a single score defines no scale.
        if low == high or new_low == new_high:
            return 1.0, 0.0
        if self.description["higher_is_better"] != data.higher_is_better:
            new_low, new_high = new_high, new_low
        factor = (new_high - new_low) / (high - low)
        return factor, new_low - factor * low

    def explained(self, data: records.DataSet, use: str) -> str:
        """A line for the log. use: what the run does with the model, such as "Starting from"."""
        factor, offset = self.scale(data)
        if (factor, offset) == (1, 0):
            scale = "scores stay as they are"
        else:
            scale = (
                f"scores become {factor:g} * score {offset:+g}, "
                f"from {self.description['dataset']} to {data.name}"
            )
        return f"{use} {self.path} (weights {self.digest}): {scale}"
