"""The arithmetic of one batch that is computed in several shares: the same step as in one.

Each process computes its own rows of the batch, one part of them after the other; `processes` says
which rows these are. Losses see the whole batch: every process gathers all scores and computes
their loss, but passes gradients on only to its own rows. The sum of the processes' gradients is
then the gradient of one process. Batch norms take the statistics of all rows, and each share draws
random masks for all rows.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from hyperiqa.base.errors import UserError, counted
from hyperiqa.training import batches, processes

# How many rows the batch of the current step has, over all processes. A global, because modules
# deep in the model need it and their `forward` takes images alone.
_batch_rows = 1
# In how many parts a process computes its rows, and the part that it computes now.
_parts = 1
_part = 0
# The buffers that a backward pass would change, because it computes parts of the model again.
_recomputed_buffers: list[torch.Tensor] = []
# Sums the gradients of the model that is trained; None as long as one process trains alone.
_gradient_sum: "GradientSum | None" = None


def begin_step(rows: int) -> None:
    """Begin a step on a batch that has this many rows, over all processes."""
    global _batch_rows
    _batch_rows = rows


def gathered(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of this process's rows, each (n, …), as those of the whole batch, (B, …).

    Gradients flow only to this process's rows.
    """
    if processes.world_size() == 1:
        return dict(outputs)
    whole = {}
    for name, output in outputs.items():
        parts = [
            torch.empty_like(output, memory_format=torch.contiguous_format)
            for _ in range(processes.world_size())
        ]
        dist.all_gather(parts, output.detach().contiguous())
        # Its own part as it was computed, with its graph; the others' are constants here.
        parts[processes.rank()] = output
        # Row k of process r is row k * W + r of the batch. Rows that only fill up a process's
        # share come last and are dropped.
        whole[name] = torch.stack(parts, 1).flatten(0, 1)[:_batch_rows]
    return whole


def outputs_of(model: nn.Module, images: Any) -> dict[str, torch.Tensor]:
    """The model's outputs of the whole batch, (B, …), from this process's images or stage maps.

    With several parts, the activations of none are kept: the backward pass computes each part
    again, one after the other. All have been scored by then, so losses may compare images.
    """
    if _parts == 1:
        return gathered(model(images))
    rows = len(batches.rows_of_process(_batch_rows, *processes.share()))
    shares = [
        checkpoint(_part_outputs, model, images, rows, part, use_reentrant=False)
        for part in range(_parts)
    ]
    # As in `gathered`: row k of a part is row k * parts + part of the process's rows.
    return gathered(
        {
            name: torch.stack([share[name] for share in shares], 1).flatten(0, 1)[:rows]
            for name in shares[0]
        }
    )


def _part_outputs(model: nn.Module, images: Any, rows: int, part: int) -> dict[str, torch.Tensor]:
    global _part
    _part = part
    # All parts draw the same masks, each time that they are computed: from the seed of the step.
    torch.manual_seed(torch.initial_seed())
    # Else the parts would share the weights' copies in bf16, and add up their gradients in bf16.
    torch.clear_autocast_cache()
    part_rows = batches.rows_of_process(rows, part, _parts)
    if isinstance(images, Mapping):
        return model({name: maps[part_rows] for name, maps in images.items()})
    return model(images[part_rows])


class GradientSum:
    """Adds up the processes' gradients while the backward pass still runs.

    Its buckets never change, unlike those of torch's DistributedDataParallel: a resumed run adds in
    the same order as an uninterrupted one, so that both agree to the last bit.
    """

    def __init__(self, model: nn.Module, trained: list[nn.Parameter]):
        self.model = model
        self.trained = trained
        self.buckets: list[list[nn.Parameter]] = [[]]
        # The backward pass comes to the last parameters first. The buckets are large enough for few
        # messages, and small enough that the first sums start early in it.
        for parameter in reversed(trained):
            if sum(p.nbytes for p in self.buckets[-1]) > 2**24:
                self.buckets.append([])
            self.buckets[-1].append(parameter)
        self.hooks = []
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                count_ready = partial(self._count_ready, number)
                self.hooks.append(parameter.register_post_accumulate_grad_hook(count_ready))
        self._begin()

    def _begin(self) -> None:
        # Gradients that each bucket still waits for.
        self.missing = list(map(len, self.buckets))
        # Of each bucket whose sum has started: its gradients, their flat sum, and the handle.
        self.sums: list[tuple[list[torch.Tensor], torch.Tensor, Any]] = []

    def _count_ready(self, bucket: int, parameter: nn.Parameter) -> None:
        self.missing[bucket] -= 1
        # Sums start in the order of the buckets: all processes must call collectives in one order.
        while len(self.sums) < len(self.buckets) and self.missing[len(self.sums)] == 0:
            self._start_next_sum()

    def _start_next_sum(self) -> None:
        bucket = self.buckets[len(self.sums)]
        # Parameters that the model does not use have no gradient, in any process.
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) if gradients else torch.zeros(1)
        self.sums.append((gradients, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Wait for all sums and put them in the place of the gradients."""
        while len(self.sums) < len(self.buckets):
            self._start_next_sum()
        for gradients, flat, work in self.sums:
            work.wait()
            # A bucket without gradients has a single number, which nothing takes.
            sizes = [g.numel() for g in gradients] or [1]
            for gradient, total in zip(gradients, flat.split(sizes)):
                gradient.copy_(total.view_as(gradient))
        self._begin()


def check_parts(model: nn.Module, parts: int) -> None:
    """Raise UserError if the model cannot be trained in parts of a batch."""
    norm = nn.modules.batchnorm._BatchNorm
    if parts > 1 and any(isinstance(m, norm) and m.training for m in model.train().modules()):
        raise UserError(
            f"--accumulate {parts}: batch norms that train take the statistics of the whole batch; "
            "expected an encoder without batch norms, or --freeze_backbone"
        )


def prepare(model: Any, parts: int = 1) -> None:
    """Prepare the model before an epoch's steps, each in that many parts.

    It then sees whole batches, starts from process 0's weights, and has its gradients summed.
    """
    global _gradient_sum, _parts, _recomputed_buffers
    _parts = parts
    _recomputed_buffers = list(model.buffers()) if model.backbone.grad_checkpointing else []
    if parts * processes.world_size() > 1:
        _see_whole_batches(model)
    if processes.world_size() == 1:
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _gradient_sum is None or _gradient_sum.model is not model:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
    # Which parameters are trained changes when a backbone is frozen or thawed.
    elif list(map(id, _gradient_sum.trained)) == list(map(id, trained)):
        return
    if _gradient_sum is not None:
        for hook in _gradient_sum.hooks:
            hook.remove()
    _gradient_sum = GradientSum(model, trained)


def backward(loss: torch.Tensor) -> None:
    """Compute the gradients of the loss, summed over the processes."""
    buffers = [buffer.clone() for buffer in _recomputed_buffers]
    loss.backward()
    # The statistics of batch norms move once in a step, and not again with what is recomputed.
    for buffer, value in zip(_recomputed_buffers, buffers):
        buffer.copy_(value)
    if _gradient_sum is not None:
        _gradient_sum.finish()


def _see_whole_batches(model: nn.Module) -> None:
    whole_kinds = (
        (nn.modules.batchnorm._BatchNorm, _WholeBatchNorm),
        (nn.Dropout | DropPath, _WholeMask),
    )
    for module, (kind, base) in itertools.product(model.modules(), whole_kinds):
        if isinstance(module, kind) and not isinstance(module, base):
            # The class comes before the module's own; the weights, hooks and name stay.
            module.__class__ = type(type(module).__name__, (base, type(module)), {})


class _WholeMask(nn.Module):
    """A Dropout or DropPath whose mask is drawn for all rows of the batch.

    Every share of the batch draws the same mask and takes its own rows of it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Dropout calls its probability p, DropPath drop_prob.
        if not self.training or not getattr(self, "p", getattr(self, "drop_prob", 0)):
            return super().forward(x)
        rank, size = processes.share()
        rows = batches.rows_of_process(_batch_rows, _part * size + rank, _parts * size)
        if len(x) != len(rows):
            raise RuntimeError(
                f"expected {counted(len(rows), 'row')} of a batch of {_batch_rows}, found {len(x)}"
            )
        shape = x.shape[1:] if isinstance(self, nn.Dropout) else (1,) * (x.ndim - 1)
        ones = x.new_ones((_batch_rows, *shape))
        # Masks are drawn in the order of the memory, so it must be that of one process's batch.
        if (
            x.ndim == 4
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            ones = ones.contiguous(memory_format=torch.channels_last)
        return x * super().forward(ones)[rows]


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


class _WholeBatchNorm(nn.Module):
    """A batch norm with the statistics of all rows of the batch, each row counted once.

    torch's SyncBatchNorm takes tensors on a GPU alone: on a CPU this is in plain operations.
    """

    # What SyncBatchNorm.forward expects of the module that it is called with.
    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        # Without a repeated last row: another process has it too, and it would count twice.
        own_rows = x[: len(range(processes.rank(), _batch_rows, processes.world_size()))]
        norm = nn.SyncBatchNorm.forward if x.is_cuda else _WholeBatchNorm._normed
        normed = norm(self, own_rows)  # type: ignore[arg-type]
        if len(own_rows) < len(x):
            # The loss drops this row, but the model's later layers expect it.
            normed = torch.cat([normed, x[len(own_rows) :].to(normed.dtype)])
        # timm's norms have their activation with them.
        for name in ("drop", "act"):
            if hasattr(self, name):
                normed = getattr(self, name)(normed)
        return normed

    def _normed(self: Any, x: torch.Tensor) -> torch.Tensor:
        # x (n, C, …) with the mean and the variance over all processes' rows and all places.
        reduced_dims = [0, *range(2, x.ndim)]
        # (1, C, 1, …), to multiply x with a value for each channel.
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.float()
        count = torch.full((1,), float(x[:, 0].numel()), device=x.device)
        sums = _Sum.apply(torch.cat([wide.sum(reduced_dims), count]))
        total, count = sums.split([x.shape[1], 1])
        mean = total / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(reduced_dims)) / count
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:
                    momentum = 1 / int(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                # The unbiased variance, as torch's batch norms keep it.
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        return normed.to(x.dtype)
