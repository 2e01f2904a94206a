"""The two loops that touch a model: `train_one_epoch` and `score`. Plain functions of what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from tqdm import tqdm

from data_loader import to_model_input
from losses import QualityLoss

LOSS_SHOWN_EVERY = 10  # steps; reading a loss makes the host wait for the device


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def train_one_epoch(
    model: torch.nn.Module,
    criterion: QualityLoss,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[dict[str, torch.Tensor]],
    device: torch.device,
    reseed: Callable[[int], None],
    bf16: bool,
    bar: tqdm,
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """One pass over the loader's batches.

    reseed(step) sets the torch generators before step 0, 1, …; bf16: autocast of the forward pass; `bar`
    counts patches. Returns the means over the batches of the loss's parts, and the scores and MOS of all
    patches, in order, as (n,) arrays.
    """
    model.train()
    parts, scores, mos = [], [], []
    for step, batch in enumerate(loader):
        reseed(step)
        batch = _to_device(batch, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = model(to_model_input(batch))
        losses = criterion(predicted, batch)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()

        parts.append(torch.stack([losses[part].detach() for part in criterion.parts]))
        scores.append(predicted.detach())
        mos.append(batch["mos"])
        bar.update(len(predicted))
        if step % LOSS_SHOWN_EVERY == 0:
            bar.set_postfix(loss=f"{losses['loss'].item():.3f}", refresh=False)
    means = torch.stack(parts).double().mean(0).tolist()
    return dict(zip(criterion.parts, means, strict=True)), *(torch.cat(v).cpu().numpy() for v in (scores, mos))


@torch.no_grad()
def score(
    model: torch.nn.Module,
    loader: Iterable[dict[str, torch.Tensor]],
    images: int,
    device: torch.device,
    bar: tqdm | None = None,
) -> np.ndarray:
    """Scores (images,) in fp32: the mean over each image's patches, which the batches' `image` assigns."""
    model.eval()
    scores, image = [], []
    for batch in loader:
        batch = _to_device(batch, device)
        scores.append(model(to_model_input(batch)).float())
        image.append(batch["image"])
        if bar is not None:
            bar.update(len(batch["image"]))
    scores, image = (torch.cat(v).cpu().numpy() for v in (scores, image))
    return np.bincount(image, scores, images) / np.bincount(image, minlength=images)
