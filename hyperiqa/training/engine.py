"""The two loops that touch a model: `train_one_epoch` and `score`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hyperiqa.base.device import Hardware
from hyperiqa.datasets.records import Record
from hyperiqa.model import fusion, hypernet
from hyperiqa.stats import metrics
from hyperiqa.training import augmentations, processes, whole_batch
from hyperiqa.training.batches import (
    SCORE_BATCH,
    DecodedSet,
    PatchBatches,
    make_loader,
    workers_watched,
)
from hyperiqa.training.patches import test_patches

Criterion = Callable[
    [Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], dict[str, torch.Tensor]
]


class NonFiniteLoss(Exception):
    """The loss of `step` (from 0) is nan or infinite."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss of step {step + 1} is {loss}")
        self.step = step
        self.loss = loss

    def explained(self, epoch: int, last: Path, images: str) -> str:
        """The message for the user. last: the newest checkpoint; images: the batch's, by name."""
        good = (
            f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        )
        return (
            f"the loss is {self.loss} in epoch {epoch}, step {self.step + 1}; {good}; "
            f"images of this batch: {images}"
        )


@dataclass
class EpochProgress:
    """The state of an epoch: together with the weights, all that its next step needs.

    step: the number of finished steps.
    seconds: the time that they took.
    names: the names of the loss's parts, `loss` first.
    parts, scores, mos: for each step, the values of these parts and its patches' scores and MOS.
    checked: the number of steps that `check_finite` need not look at again.
    loss: the newest loss that it looked at.
    """

    step: int = 0
    seconds: float = 0.0
    names: tuple[str, ...] = ()
    parts: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)
    mos: list[torch.Tensor] = field(default_factory=list)
    checked: int = 0
    loss: float = float("nan")

    def add(
        self, losses: Mapping[str, torch.Tensor], scores: torch.Tensor, mos: torch.Tensor
    ) -> None:
        """Add the results of a step. losses: name -> value, `loss` first; scores, mos: (N,)."""
        self.step += 1
        self.names = tuple(losses)
        self.parts.append(torch.stack([part.detach() for part in losses.values()]))
        self.scores.append(scores.detach().clone())
        self.mos.append(mos)

    def check_finite(self) -> None:
        """Set `loss` to the newest one; raises NonFiniteLoss for the first that is not finite."""
        losses = torch.stack([parts[0] for parts in self.parts[self.checked :]]).tolist()
        for step, loss in enumerate(losses, self.checked):
            if not np.isfinite(loss):
                raise NonFiniteLoss(step, loss)
        # All but the newest, which the next call may ask for again.
        self.checked = self.step - 1
        self.loss = losses[-1]

    def figures(self) -> dict[str, float]:
        """The loss's parts as means over the batches, and the figures of all patches' scores."""
        self.check_finite()
        means = torch.stack(self.parts).double().mean(0).tolist()
        scores = torch.cat(self.scores).cpu().numpy()
        mos = torch.cat(self.mos).cpu().numpy()
        return {**dict(zip(self.names, means, strict=True)), **metrics.recorded(scores, mos)}

    def state(self) -> dict[str, Any]:
        """As plain values and tensors on the CPU, for a checkpoint."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "names": list(self.names),
            "parts": [values.cpu() for values in self.parts],
            "scores": [scores.cpu() for scores in self.scores],
            "mos": [mos.cpu() for mos in self.mos],
        }

    @classmethod
    def from_state(cls, state: Mapping, device: torch.device) -> "EpochProgress":
        """The progress that `state` returned, with its tensors on the device."""
        parts = [values.to(device) for values in state["parts"]]
        names = state.get("names", ())
        if not names and parts:
            # States of versions before 0.8 have no names; there were no other parts.
            names = ("loss", "l1", "rank")[: len(parts[0])]
        return cls(
            state["step"],
            state["seconds"],
            tuple(names),
            parts,
            [scores.to(device) for scores in state["scores"]],
            [mos.to(device) for mos in state["mos"]],
        )


def to_model_input(
    model: hypernet.QualityNet, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor | fusion.StageMaps:
    """The model's input: augmented, normalised, mixed patches (N, 3, P, P), or stage maps."""
    if "features" in batch:
        return model.unpack(batch["features"])
    return augmentations.mixed(model.backbone.normalised(augmentations.augmented(batch)), batch)


@torch.no_grad()
def with_teacher_scores(
    loader: Iterable[dict], teacher: hypernet.QualityNet, hardware: Hardware
) -> Iterator[dict]:
    """The loader's batches with `teacher` (N,): the scores that a teacher gives the same patches.

    The patches of the batches that come out are augmented. teacher: a model in eval mode.
    """
    for batch in loader:
        whole_batch.begin_step(len(batch["mos"]))
        batch = hardware.take(batch)
        # Once for both models: what was drawn is removed, so the student does not augment again.
        patches = augmentations.augmented(batch)
        batch = {
            name: value for name, value in batch.items() if name not in augmentations.AUGMENTATIONS
        }
        batch["patches"] = patches
        with hardware.autocast():
            scores = teacher(to_model_input(teacher, batch))["scores"].float()
        yield batch | whole_batch.gathered({"teacher": scores})


@workers_watched()
def train_one_epoch(
    model: hypernet.QualityNet,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[dict[str, torch.Tensor]],
    hardware: Hardware,
    progress: EpochProgress,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train on the loader's batches; returns the epoch's training figures. Raises NonFiniteLoss.

    loader: the batches from step `progress.step` of the epoch on. A batch's `seed` is for the torch
    generators in its step; its `mos` covers the rows of all processes.
    after_step: called after each step; it may raise to stop the epoch.
    """
    model.train()
    # On a GPU, each look at the losses makes the host wait for the device.
    read_every = 1 if hardware.device.type == "cpu" else 10
    for batch in loader:
        if "seed" in batch:
            torch.manual_seed(batch["seed"])
        whole_batch.begin_step(len(batch["mos"]))
        batch = hardware.take(batch)
        # Now, not before the backward pass: gradients that lay beside the activations would
        # scatter the free memory.
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast():
            outputs = whole_batch.outputs_of(model, to_model_input(model, batch))
        losses = criterion(outputs, batch)
        whole_batch.backward(losses["loss"])
        optimizer.step()
        progress.add(losses, outputs["scores"], batch["mos"])
        # They are where the activations were; the next step needs that memory in one piece.
        del outputs, losses
        if progress.step % read_every == 0:
            progress.check_finite()
        after_step()
    return progress.figures()


@workers_watched()
@torch.no_grad()
def score(
    model: hypernet.QualityNet,
    loader: Iterable[dict[str, torch.Tensor]],
    images: int,
    hardware: Hardware,
    after_batch: Callable[[int], None] = lambda patches: None,
    batches: int = 0,
) -> np.ndarray:
    """Scores (images,): the mean over each image's patches, by the batches' `image`.

    after_batch: called with the number of patches of each batch; it may raise to stop.
    batches: the number of all batches. With W processes, each has every W-th of them.
    """
    model.eval()
    scores: list[torch.Tensor] = []
    numbers: list[torch.Tensor] = []
    for batch in loader:
        batch = hardware.take(batch)
        with hardware.autocast():
            scores.append(model(to_model_input(model, batch))["scores"].float())
        numbers.append(batch["image"])
        after_batch(len(batch["image"]))
    # Other processes have one batch more, and after_batch may wait for all of them.
    if len(scores) < -(-batches // processes.world_size()):
        after_batch(0)
    image = np.concatenate(processes.interleaved([part.cpu().numpy() for part in numbers]))
    value = np.concatenate(processes.interleaved([part.cpu().numpy() for part in scores]))
    return np.bincount(image, value, images) / np.bincount(image, minlength=images)


@workers_watched()
@torch.no_grad()
def stage_maps(
    model: hypernet.QualityNet, hardware: Hardware, batches: PatchBatches, start: int = 0
) -> Iterator[np.ndarray]:
    """The encoder's stage maps of the patches from number `start` on, batch by batch: (N, F), fp32.

    A row holds the maps of a patch, averaged to the sizes that the model uses.
    start: the number of a batch's first patch.
    """
    model.eval()
    with progress_bar("Computing features", len(batches.patches), start) as bar:
        for batch in make_loader(batches, hardware, start // batches.batch_size):
            images = model.backbone.normalised(augmentations.augmented(hardware.take(batch)))
            yield model.pack(model.backbone.stage_maps(images)).cpu().numpy()
            bar.update(len(images))


def score_set(
    model: hypernet.QualityNet,
    images: DecodedSet,
    records: Sequence[Record],
    crops: tuple[str, int],
    hardware: Hardware,
    after_batch: Callable[[], None] = lambda: None,
    batch_size: int = SCORE_BATCH,
) -> np.ndarray:
    """Scores (N,) of a data set's records; crops: `--test_crop` and `--test_patch_num`."""
    side = images.cache.min_side
    batches = images.batches(records, batch_size, lambda sizes: test_patches(sizes, side, *crops))
    with progress_bar(f"Testing {images.data.name}", len(batches.patches)) as bar:

        def after(patches: int) -> None:
            bar.update(patches)
            after_batch()

        return score(
            model,
            make_loader(batches, hardware, *processes.share()),
            len(records),
            hardware,
            after,
            len(batches),
        )


def progress_bar(text: str, total: int, done: int = 0) -> tqdm:
    """A bar over `total` patches that begins at `done` and leaves nothing behind.

    Only on a terminal: in a file it would be many lines.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=text,
        unit="patch",
        leave=False,
        dynamic_ncols=True,
        disable=None,
    )
