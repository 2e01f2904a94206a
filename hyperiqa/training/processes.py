"""Several processes that train one model, as torchrun or Slurm start them; one process is the case of one.
An epoch is one global list of batches. Of a batch of B rows process r of W takes rows r, r + W, …; where these run out
before another's, its last row is one that others have too and that counts nowhere, so that all make the same steps.
Losses see the whole batch: each process gathers all scores and computes the loss of all, whose gradient it passes on to
its own rows; the sums of the processes' gradients are then those of one process. Batch norms take the statistics of all
rows, and random masks are drawn for all rows by every process. Process 0 alone writes and speaks."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import DropPath
from torch import nn

from hyperiqa.base.errors import Interrupted, UserError
from hyperiqa.training.batches import own_rows

PATIENCE = timedelta(days=1)  # for a process that decodes or computes for all; of one that ended, the others learn soon
# What a collective says when another process has gone.
GONE = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "ncclRemoteError", "store")
BUCKET_BYTES = 2**24
_rows_of_batch = 1  # of the step that is under way, over all processes
_gradients: "GradientSum | None" = None  # of the model that is trained


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> tuple[int, int]:
    """(this process's number, how many there are): the first row it takes, and the stride."""
    return rank(), world()


def local() -> tuple[int, int]:
    """This process's number on its node, and how many the node has."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def own_device(name: str) -> str:
    """`--device` of this process: of several, each takes the GPU of its number on the node. Raises UserError."""
    if world() == 1 or name in ("cpu", "mps") or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:"):
        raise UserError(f"--device {name}: expected cuda, as each of the {world()} processes takes a GPU of its own")
    if local()[0] < torch.cuda.device_count():
        torch.cuda.set_device(local()[0])
    return f"cuda:{local()[0]}"


def launched_by() -> str:
    """How the program was started, for the user to do so again."""
    if world() == 1:
        return "python"
    processes = local()[1]
    nodes = f"--nnodes {world() // processes} " if world() > processes else ""
    return f"torchrun {nodes}--nproc_per_node {processes}"


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Find the other processes of the run, if its launcher started several, and leave them at the end.
    Of a UserError that ends them all, one process speaks. Raises UserError."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "0", "1"):
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} without {', '.join(missing)}: start with torchrun")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local()[1]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    store = dist.distributed_c10d._get_default_store()
    try:
        with watched():
            yield
    except UserError as mistake:
        with contextlib.suppress(RuntimeError):  # the store went with its process
            mistake.said = store.add("said", 1) > 1
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """What ends one process ends all, for its reason: here as a UserError or Interrupted in each."""
    if world() == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except (UserError, Interrupted) as end:
        with contextlib.suppress(RuntimeError):
            told = f"signal {end.signum}" if isinstance(end, Interrupted) else f"error {end}"
            store.compare_set("reason", "", told)
        raise
    except RuntimeError as problem:
        if not any(word in str(problem) for word in GONE):
            raise
        kind, _, reason = _reason(store).partition(" ")
        if kind == "signal":
            raise Interrupted(int(reason)) from None
        raise UserError(reason or "a process of the run was lost; --resume auto goes on") from None


def _reason(store: dist.Store) -> str:
    """Why the process that has gone has gone, as far as it could tell."""
    for _ in range(20):
        with contextlib.suppress(RuntimeError):
            if store.check(["reason"]):
                return store.get("reason").decode()
        time.sleep(0.1)
    return ""


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    if world() == 1:
        return number
    dist.all_reduce(found := torch.tensor(number), dist.ReduceOp.MAX)
    return int(found)


def all_of(value: Any) -> list:
    """Every process's value, by their numbers."""
    found = [value] * world()
    if world() > 1:
        dist.all_gather_object(found, value)
    return found


def in_turn(values: Sequence) -> list:
    """The processes' values one after the other: the first of each, the second of each, …"""
    found = all_of(list(values))
    return [each[k] for k in range(max(map(len, found))) for each in found if k < len(each)]


def from_first(work: Callable[[], Any]) -> Any:
    """What process 0 finds; what it raises is raised in all."""
    if world() == 1:
        return work()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = work()
        except Exception as problem:
            found[1] = problem
    dist.broadcast_object_list(found, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def costs(start: float, ready: float, steps: int, device: torch.device) -> list[dict[str, float]]:
    """Of each process: seconds to its first step, seconds a step of `steps` since `ready`, peak MiB (on a GPU, its)."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    return all_of({"start": start, "step": (time.perf_counter() - ready) / max(1, steps), "memory": memory / 2**20})


def cost_lines(costs: Sequence[Mapping[str, float]]) -> Iterator[str]:
    for number, cost in enumerate(costs):
        yield f"Process {number}: {{start:.1f}} s to start, {{step:.3f}} s a step, {{memory:.0f}} MiB".format(**cost)


@contextlib.contextmanager
def first_of_node() -> Iterator[None]:
    """One process of a node goes before the others, who find what it leaves."""
    if local()[0]:
        largest(0)
    yield
    if not local()[0]:
        largest(0)


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise UserError where the processes do not agree, naming the first thing that differs."""
    for number, other in enumerate(all_of(dict(value))):
        names = [name for name in {**value, **other} if value.get(name) != other.get(name)]
        if names and rank() == 0:
            ours, theirs = value.get(names[0]), other.get(names[0])
            raise UserError(f"the processes' {what} differ: {names[0]} is {ours} in 0 and {theirs} in {number}")


def begin_step(rows: int) -> None:
    """A step on a batch of so many rows, over all processes, begins."""
    global _rows_of_batch
    _rows_of_batch = rows


def gathered(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs (n, …) for this process's rows -> (B, …) for the batch's; gradients flow to this process's alone."""
    if world() == 1:
        return dict(outputs)
    whole = {}
    for name, own in outputs.items():
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(world())]
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
        self.hooks = [p.register_post_accumulate_grad_hook(partial(self._ready, k)) for k, p in places]
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
            for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients] or [1])):
                gradient.copy_(total.view_as(gradient))
        self._begin()


def prepare(model: nn.Module) -> None:
    """Before an epoch's steps: let the model see whole batches, from process 0's weights, and sum its gradients."""
    global _gradients
    if world() == 1:
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
        for base, seeing in ((nn.modules.batchnorm._BatchNorm, _WholeBatchNorm), ((nn.Dropout, DropPath), _WholeMask)):
            if isinstance(module, base) and not issubclass(kind, seeing):  # type: ignore[arg-type]
                module.__class__ = type(kind.__name__, (seeing, kind), {})


class _WholeMask(nn.Module):
    """A Dropout or DropPath whose mask is drawn for all rows of the batch; a process takes its own rows of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not getattr(self, "p", getattr(self, "drop_prob", 0)):
            return super().forward(x)
        rows, number = own_rows(_rows_of_batch, *share()), _rows_of_batch
        if len(x) != len(rows):
            raise RuntimeError(f"expected {len(rows)} rows of a batch of {number}, found {len(x)}")
        shape = x.shape[1:] if isinstance(self, nn.Dropout) else (1,) * (x.ndim - 1)
        ones = x.new_ones((number, *shape))
        if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)  # masks are drawn in the order of the memory
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
        own = x[: len(range(rank(), _rows_of_batch, world()))]
        normed = nn.SyncBatchNorm.forward(self, own) if x.is_cuda else self._normed(own)  # type: ignore[arg-type]
        normed = normed if len(own) == len(x) else torch.cat([normed, x[len(own) :].to(normed.dtype)])
        for name in ("drop", "act"):  # timm's norms that have their activation with them
            normed = getattr(self, name)(normed) if hasattr(self, name) else normed
        return normed

    def _normed(self: Any, x: torch.Tensor) -> torch.Tensor:
        dims, shape = [d for d in range(x.ndim) if d != 1], [-1 if d == 1 else 1 for d in range(x.ndim)]
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
                weight = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance * (count / (count - 1)), weight)
        return normed.to(x.dtype)
