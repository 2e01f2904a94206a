"""The arithmetic of one batch that several processes share."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import nn

from hyperiqa.training.batches import rows_of_process
from hyperiqa.training.processes import rank, share, world_size

BUCKET_BYTES = 2**24


_rows_of_batch = 1  # of the step that is under way, over all processes


_gradients: "GradientSum | None" = None  # of the model that is trained


def begin_step(rows: int) -> None:
    """A step on a batch of so many rows, over all processes, begins."""
    global _rows_of_batch
    _rows_of_batch = rows


def gathered(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs (n, …) for this process's rows -> (B, …) for the batch's; gradients flow to this process's alone."""
    if world_size() == 1:
        return dict(outputs)
    whole = {}
    for name, own in outputs.items():
        parts = [
            torch.empty_like(own, memory_format=torch.contiguous_format)
            for _ in range(world_size())
        ]
        dist.all_gather(parts, own.detach().contiguous())
        parts[rank()] = own
        whole[name] = torch.stack(parts, 1).flatten(0, 1)[:_rows_of_batch]
    return whole


class GradientSum:
    """Adds up the processes' gradients while the backward pass still runs. Its buckets never change, unlike those of
    torch's DistributedDataParallel: a resumed run adds in the same order as one that went on, to the last bit."""

    def __init__(self, model: nn.Module, trained: list[nn.Parameter]):
        self.model, self.trained = model, trained
        self.buckets: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(trained):  # the backward pass comes to the last ones first
            if sum(p.nbytes for p in self.buckets[-1]) > BUCKET_BYTES:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
        places = [(k, p) for k, bucket in enumerate(self.buckets) for p in bucket]
        self.hooks = [
            p.register_post_accumulate_grad_hook(partial(self._ready, k)) for k, p in places
        ]
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.sums: list[tuple[list[torch.Tensor], torch.Tensor, Any]] = []

    def _ready(self, bucket: int, parameter: nn.Parameter) -> None:
        self.missing[bucket] -= 1
        while len(self.sums) < len(self.buckets) and self.missing[len(self.sums)] == 0:
            self._start()

    def _start(self) -> None:
        """Of the next bucket; parameters that the model does not use have no gradient in any process."""
        gradients = [p.grad for p in self.buckets[len(self.sums)] if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) if gradients else torch.zeros(1)
        self.sums.append((gradients, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        while len(self.sums) < len(self.buckets):
            self._start()
        for gradients, flat, work in self.sums:
            work.wait()
            for gradient, total in zip(
                gradients, flat.split([g.numel() for g in gradients] or [1])
            ):
                gradient.copy_(total.view_as(gradient))
        self._begin()


def prepare(model: nn.Module) -> None:
    """Before an epoch's steps: let the model see whole batches, from process 0's weights, and sum its gradients."""
    global _gradients
    if world_size() == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _gradients is None or _gradients.model is not model:
        _see_whole_batches(model)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
    elif [*map(id, _gradients.trained)] == [*map(id, trained)]:
        return
    for hook in _gradients.hooks if _gradients else ():
        hook.remove()
    _gradients = GradientSum(model, trained)


def sum_gradients() -> None:
    """After the backward pass, before the optimizer's step."""
    if _gradients is not None:
        _gradients.finish()


def _see_whole_batches(model: nn.Module) -> None:
    """Let batch norms and random masks act on the rows of all processes as on one process's."""
    for module in model.modules():
        kind = type(module)
        for base, seeing in (
            (nn.modules.batchnorm._BatchNorm, _WholeBatchNorm),
            ((nn.Dropout, DropPath), _WholeMask),
        ):
            if isinstance(module, base) and not issubclass(kind, seeing):  # type: ignore[arg-type]
                module.__class__ = type(kind.__name__, (seeing, kind), {})


class _WholeMask(nn.Module):
    """A Dropout or DropPath whose mask is drawn for all rows of the batch; a process takes its own rows of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not getattr(self, "p", getattr(self, "drop_prob", 0)):
            return super().forward(x)
        rows, number = rows_of_process(_rows_of_batch, *share()), _rows_of_batch
        if len(x) != len(rows):
            raise RuntimeError(f"expected {len(rows)} rows of a batch of {number}, found {len(x)}")
        shape = x.shape[1:] if isinstance(self, nn.Dropout) else (1,) * (x.ndim - 1)
        ones = x.new_ones((number, *shape))
        if (
            x.ndim == 4
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            ones = ones.contiguous(
                memory_format=torch.channels_last
            )  # masks are drawn in the order of the memory
        return x * super().forward(ones)[rows]


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


class _WholeBatchNorm(nn.Module):
    """A batch norm of the statistics of all rows of the batch, without those that are there twice.
    torch's SyncBatchNorm takes tensors on a GPU alone: on a CPU this is in plain operations."""

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        own = x[: len(range(rank(), _rows_of_batch, world_size()))]
        normed = nn.SyncBatchNorm.forward(self, own) if x.is_cuda else self._normed(own)  # type: ignore[arg-type]
        normed = (
            normed if len(own) == len(x) else torch.cat([normed, x[len(own) :].to(normed.dtype)])
        )
        for name in ("drop", "act"):  # timm's norms that have their activation with them
            normed = getattr(self, name)(normed) if hasattr(self, name) else normed
        return normed

    def _normed(self: Any, x: torch.Tensor) -> torch.Tensor:
        dims, shape = (
            [d for d in range(x.ndim) if d != 1],
            [-1 if d == 1 else 1 for d in range(x.ndim)],
        )
        wide = x.float()
        count = torch.full((1,), float(x[:, 0].numel()), device=x.device)
        total, count = _Sum.apply(torch.cat([wide.sum(dims), count])).split([x.shape[1], 1])
        centred = wide - (mean := total / count).view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = (
                    1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                )
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance * (count / (count - 1)), weight)
        return normed.to(x.dtype)
