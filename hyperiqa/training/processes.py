"""Several processes that train one model, as torchrun or Slurm start them; one process is the case of one.
An epoch is one global list of batches. Of a batch of B rows process r of W takes rows r, r + W, …; where these run out
before another's, its last row is one that others have too and that counts nowhere, so that all make the same steps.
Losses see the whole batch: each process gathers all scores and computes the loss of all, whose gradient it passes on to
its own rows; the sums of the processes' gradients are then those of one process. Batch norms take the statistics of all
rows, and random masks are drawn for all rows by every process. Process 0 alone writes and speaks."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hyperiqa.base.errors import Interrupted, UserError

PATIENCE = timedelta(
    days=1
)  # for a process that decodes or computes for all; of one that ended, the others learn soon
# What a collective says when another process has gone.
GONE = (
    "Connection closed",
    "Connection reset",
    "Broken pipe",
    "gloo",
    "NCCL",
    "ncclRemoteError",
    "store",
)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> tuple[int, int]:
    """(this process's number, how many there are): the first row it takes, and the stride."""
    return rank(), world_size()


def node_rank_and_size() -> tuple[int, int]:
    """This process's number on its node, and how many the node has."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def device_of_process(name: str) -> str:
    """`--device` of this process: of several, each takes the GPU of its number on the node. Raises UserError."""
    if world_size() == 1 or name in ("cpu", "mps") or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name}: expected cuda, as each of the {world_size()} processes takes a GPU of its own"
        )
    if node_rank_and_size()[0] < torch.cuda.device_count():
        torch.cuda.set_device(node_rank_and_size()[0])
    return f"cuda:{node_rank_and_size()[0]}"


def launch_command() -> str:
    """How the program was started, for the user to do so again."""
    if world_size() == 1:
        return "python"
    processes = node_rank_and_size()[1]
    nodes = f"--nnodes {world_size() // processes} " if world_size() > processes else ""
    return f"torchrun {nodes}--nproc_per_node {processes}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Find the other processes of the run, if its launcher started several, and leave them at the end.
    Of a UserError that ends them all, one process speaks. Raises UserError."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "0", "1"):
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} without {', '.join(missing)}: start with torchrun"
        )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // node_rank_and_size()[1]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE
    )
    store = dist.distributed_c10d._get_default_store()
    try:
        with shared_failures():
            yield
    except UserError as mistake:
        with contextlib.suppress(RuntimeError):  # the store went with its process
            mistake.already_shown = store.add("said", 1) > 1
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def shared_failures() -> Iterator[None]:
    """What ends one process ends all, for its reason: here as a UserError or Interrupted in each."""
    if world_size() == 1:
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


def largest_of_all(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:
        return number
    dist.all_reduce(found := torch.tensor(number), dist.ReduceOp.MAX)
    return int(found)


def gather_objects(value: Any) -> list:
    """Every process's value, by their numbers."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


def interleaved(values: Sequence) -> list:
    """The processes' values one after the other: the first of each, the second of each, …"""
    found = gather_objects(list(values))
    return [each[k] for k in range(max(map(len, found))) for each in found if k < len(each)]


def from_rank_zero(work: Callable[[], Any]) -> Any:
    """What process 0 finds; what it raises is raised in all."""
    if world_size() == 1:
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


def process_costs(
    start: float, ready: float, steps: int, device: torch.device
) -> list[dict[str, float]]:
    """Of each process: seconds to its first step, seconds a step of `steps` since `ready`, peak MiB (on a GPU, its)."""
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        import resource  # Windows has none: what only scores must not need it

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return gather_objects(
        {
            "start": start,
            "step": (time.perf_counter() - ready) / max(1, steps),
            "memory": memory / 2**20,
        }
    )


def cost_lines(process_costs: Sequence[Mapping[str, float]]) -> Iterator[str]:
    for number, cost in enumerate(process_costs):
        yield f"Process {number}: {{start:.1f}} s to start, {{step:.3f}} s a step, {{memory:.0f}} MiB".format(
            **cost
        )


@contextlib.contextmanager
def node_leader_first() -> Iterator[None]:
    """One process of a node goes before the others, who find what it leaves."""
    if node_rank_and_size()[0]:
        largest_of_all(0)
    yield
    if not node_rank_and_size()[0]:
        largest_of_all(0)


def check_same_in_all(what: str, value: Mapping[str, Any]) -> None:
    """Raise UserError where the processes do not agree, naming the first thing that differs."""
    for number, other in enumerate(gather_objects(dict(value))):
        names = [name for name in {**value, **other} if value.get(name) != other.get(name)]
        if names and rank() == 0:
            ours, theirs = value.get(names[0]), other.get(names[0])
            raise UserError(
                f"the processes' {what} differ: {names[0]} is {ours} in 0 and {theirs} in {number}"
            )
