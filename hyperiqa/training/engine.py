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
from hyperiqa.model.fusion import StageMaps
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.stats import metrics
from hyperiqa.training import processes, whole_batch
from hyperiqa.training.augmentations import AUGMENTATIONS, augmented, mixed
from hyperiqa.training.batches import SCORE_BATCH, DecodedSet, PatchBatches
from hyperiqa.training.loaders import make_loader, workers_watched
from hyperiqa.training.patches import test_patches

READ_EVERY = 10  # steps between two looks at the losses on a GPU, where each makes the host wait for the device
Criterion = Callable[
    [Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], dict[str, torch.Tensor]
]


class NonFiniteLoss(Exception):
    """The loss of `step` (from 0) is nan or infinite."""

    def __init__(self, step: int, loss: float):
        super().__init__(f"the loss of step {step + 1} is {loss}")
        self.step, self.loss = step, loss

    def explained(self, epoch: int, last: Path) -> str:
        """For the user, who is told which images the batch had: ends where their names belong."""
        kept = (
            f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        )
        return f"the loss is {self.loss} in epoch {epoch}, step {self.step + 1}; {kept}; images of this batch: "


@dataclass
class EpochProgress:
    """What an epoch has brought so far: all that is needed to go on with its next step, beside the weights.
    `names` are the loss's parts, `parts` their values in each step, `scores` and `mos` those of its patches."""

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
        self.step, self.names = self.step + 1, tuple(losses)
        self.parts.append(torch.stack([part.detach() for part in losses.values()]))
        self.scores.append(scores.detach().clone())
        self.mos.append(mos)

    def check_finite(self) -> None:
        """Note the newest `loss`; raises NonFiniteLoss for the first one since the last check that is not finite."""
        losses = torch.stack([parts[0] for parts in self.parts[self.checked :]]).tolist()
        for step, loss in enumerate(losses, self.checked):
            if not np.isfinite(loss):
                raise NonFiniteLoss(step, loss)
        self.checked = self.step - 1  # the newest may be asked for again
        self.loss = losses[-1]

    def figures(self) -> dict[str, float]:
        """The means over the batches of the loss's parts, and the figures of all patches' scores."""
        self.check_finite()
        means = torch.stack(self.parts).double().mean(0).tolist()
        scores, mos = (torch.cat(v).cpu().numpy() for v in (self.scores, self.mos))
        return {**dict(zip(self.names, means, strict=True)), **metrics.recorded(scores, mos)}

    def state(self) -> dict[str, Any]:
        """As plain values and tensors on the CPU, for a checkpoint."""
        lists = {
            name: [t.cpu() for t in getattr(self, name)] for name in ("parts", "scores", "mos")
        }
        return {"step": self.step, "seconds": self.seconds, "names": list(self.names), **lists}

    @classmethod
    def from_state(cls, state: Mapping, device: torch.device) -> "EpochProgress":
        lists: dict[str, Any] = {
            n: [t.to(device) for t in state[n]] for n in ("parts", "scores", "mos")
        }
        # States of versions before 0.8 knew these parts alone.
        names = (
            state.get("names")
            or ("loss", "l1", "rank")[: len(lists["parts"][0]) if lists["parts"] else 0]
        )
        return cls(state["step"], state["seconds"], tuple(names), **lists)


def to_model_input(model: HyperNet, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | StageMaps:
    """What the model takes of a batch: augmented, normalised, mixed patches (N, 3, P, P), or computed stage maps."""
    if "features" in batch:
        return model.unpack(batch["features"])
    return mixed(model.backbone.normalised(augmented(batch)), batch)


@torch.no_grad()
def with_teacher_scores(
    loader: Iterable[dict], teacher: HyperNet, hardware: Hardware
) -> Iterator[dict]:
    """The loader's batches with `teacher` (N,): the scores that another model, in eval mode, gives the same patches."""
    for batch in loader:
        whole_batch.begin_step(len(batch["mos"]))
        batch = hardware.take(batch)
        patches = augmented(batch)  # once, for both models
        batch = {name: value for name, value in batch.items() if name not in AUGMENTATIONS} | {
            "patches": patches
        }
        with hardware.autocast():
            scores = teacher(to_model_input(teacher, batch))["scores"].float()
        yield batch | whole_batch.gathered({"teacher": scores})


@workers_watched()
def train_one_epoch(
    model: HyperNet,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[dict[str, torch.Tensor]],
    hardware: Hardware,
    progress: EpochProgress,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train on the loader's batches, which begin at step `progress.step` of the epoch. A batch's `seed` is that of the
    torch generators in its step; its `mos` are those of all processes' rows. after_step() shows, averages, saves, and
    may stop the epoch by raising. Returns the epoch's training figures. Raises NonFiniteLoss."""
    model.train()
    read_every = 1 if hardware.device.type == "cpu" else READ_EVERY
    for batch in loader:
        if "seed" in batch:
            torch.manual_seed(batch["seed"])
        whole_batch.begin_step(len(batch["mos"]))
        batch = hardware.take(batch)
        # Now, not before the backward pass: kept beside the activations they would scatter the free memory.
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast():
            outputs = whole_batch.gathered(model(to_model_input(model, batch)))
        losses = criterion(outputs, batch)
        losses["loss"].backward()
        whole_batch.sum_gradients()
        optimizer.step()
        progress.add(losses, outputs["scores"], batch["mos"])
        del outputs, losses  # which lie where the activations were
        if progress.step % read_every == 0:
            progress.check_finite()
        after_step()
    return progress.figures()


@workers_watched()
@torch.no_grad()
def score(
    model: HyperNet,
    loader: Iterable[dict[str, torch.Tensor]],
    images: int,
    hardware: Hardware,
    after_batch: Callable[[int], None] = lambda patches: None,
    batches: int = 0,
) -> np.ndarray:
    """Scores (images,): the mean over each image's patches, by the batches' `image`. after_batch(patches) may show, and
    may stop by raising. Of several processes each has every so many-th of all `batches`."""
    model.eval()
    scores, image = [], []
    for batch in loader:
        batch = hardware.take(batch)
        with hardware.autocast():
            scores.append(model(to_model_input(model, batch))["scores"].float())
        image.append(batch["image"])
        after_batch(len(batch["image"]))
    if len(scores) < -(-batches // processes.world_size()):  # others have one more
        after_batch(0)
    of, value = (
        np.concatenate(processes.interleaved([each.cpu().numpy() for each in v]))
        for v in (image, scores)
    )
    return np.bincount(of, value, images) / np.bincount(of, minlength=images)


@workers_watched()
@torch.no_grad()
def stage_maps(
    model: HyperNet, hardware: Hardware, batches: PatchBatches, start: int = 0
) -> Iterator[np.ndarray]:
    """What the model looks at of its encoder's stage maps, (N, F) in fp32: of each batch of patches from `start` on."""
    model.eval()
    with progress_bar(
        "Computing features", len(batches.patches), start * batches.batch_size
    ) as shown:
        for batch in make_loader(batches, hardware, start):
            images = model.backbone.normalised(augmented(hardware.take(batch)))
            yield model.pack(model.backbone.stage_maps(images)).cpu().numpy()
            shown.update(len(images))


def score_set(
    model: HyperNet,
    images: DecodedSet,
    records: Sequence[Record],
    crops: tuple[str, int],
    hardware: Hardware,
    after_batch: Callable[[], None] = lambda: None,
    batch_size: int = SCORE_BATCH,
) -> np.ndarray:
    """Scores (N,) of a data set's records: `crops` are those of `--test_crop` and `--test_patch_num`."""
    batches = images.batches(
        records, batch_size, lambda sizes: test_patches(sizes, images.cache.min_side, *crops)
    )
    with progress_bar(f"Testing {images.data.name}", len(batches.patches)) as shown:

        def after(patches: int) -> None:
            shown.update(patches)
            after_batch()

        loader = make_loader(batches, hardware, *processes.share())
        return score(model, loader, len(records), hardware, after, len(batches))


def progress_bar(text: str, total: int, done: int = 0) -> tqdm:
    return tqdm(total=total, initial=done, desc=text, unit="patch", leave=False, dynamic_ncols=True)
