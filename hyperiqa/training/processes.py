"""Several processes that train one model, as torchrun or Slurm start them.

Each process asks here who it is, learns what the others know, and ends when another one ends. A
program that was started alone is one process of one, and the functions return at once.

An epoch is one global list of batches; of W processes, process r takes the rows r, r + W, … of each
batch. A process with no row left repeats the batch's last row, which then counts only once, so that
all processes make the same steps. `whole_batch` holds the arithmetic that makes these steps equal
to those of one process. Only process 0 writes files and prints.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hyperiqa.base.errors import Interrupted, UserError

# How long a process waits for the others in a step. When one ends, the others learn of it at once;
# this is for one that neither works nor ends, as after SIGSTOP or on a disk that hangs.
PATIENCE = timedelta(minutes=10)
# How long the store that the processes share may take for an answer.
ANSWER_SECONDS = 5
# Words in the error that a collective raises when another process has gone.
GONE = (
    "Connection closed",
    "Connection reset",
    "Broken pipe",
    "gloo",
    "NCCL",
    "ncclRemoteError",
    "store",
)
Answer = TypeVar("Answer")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> tuple[int, int]:
    """(rank, number of processes): a process's first row of a batch, and the stride to the next."""
    return rank(), world_size()


def node_rank_and_size() -> tuple[int, int]:
    """This process's number on its node, and how many processes the node has."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def device_of_process(name: str) -> str:
    """`--device` of this process: each of several takes the GPU of its number on the node.

    Raises UserError where the flag names one GPU for all of them.
    """
    if world_size() == 1 or name in ("cpu", "mps") or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:"):
        raise UserError(
            f"--device {name}: expected cuda, as each of the {world_size()} processes takes a GPU "
            "of its own"
        )
    node_rank, _ = node_rank_and_size()
    # A node with too few GPUs is reported where the device is chosen, in words for the user.
    if node_rank < torch.cuda.device_count():
        torch.cuda.set_device(node_rank)
    return f"cuda:{node_rank}"


def launch_command() -> str:
    """How the program was started, for the user to do so again."""
    if world_size() == 1:
        return "python"
    _, node_size = node_rank_and_size()
    nodes = f"--nnodes {world_size() // node_size} " if world_size() > node_size else ""
    return f"torchrun {nodes}--nproc_per_node {node_size}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes of the run, if a launcher started several; leave them at the end.

    Where a UserError ends them all, one process alone prints it. Raises UserError.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "0", "1"):
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} without {', '.join(missing)}: "
            "start with torchrun"
        )
    if "OMP_NUM_THREADS" not in os.environ:
        # Else each process would start as many threads as the node has cores.
        _, node_size = node_rank_and_size()
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // node_size))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    store = dist.distributed_c10d._get_default_store()
    number_of_processes = world_size()
    ends_last = False
    try:
        with shared_failures():
            yield
    except UserError as mistake:
        mistake.already_shown = _ask(lambda: store.add("said", 1), 1) > 1
        # The process that holds the store.
        ends_last = rank() == 0
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
        if ends_last:
            _wait_for_others(store, number_of_processes)


def _wait_for_others(store: dist.Store, number_of_processes: int) -> None:
    """Wait, for a few seconds at most, until all processes have asked whether to show the mistake.

    The store ends with its process. If others still asked it then, the library would print its own
    messages, with many lines each.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline and store.add("said", 0) < number_of_processes:
        time.sleep(0.05)


@contextlib.contextmanager
def shared_failures() -> Iterator[None]:
    """End all processes with what ends one of them: a UserError or Interrupted in each."""
    if world_size() == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except (UserError, Interrupted) as end:
        reason = f"signal {end.signum}" if isinstance(end, Interrupted) else f"error {end}"
        # The first process to end sets the reason, and no later one replaces it.
        _ask(lambda: store.compare_set("reason", "", reason), b"")
        raise
    except RuntimeError as problem:
        if not any(words in str(problem) for words in GONE):
            raise
        kind, _, reason = _ask(lambda: _reason(store), "").partition(" ")
        if kind == "signal":
            raise Interrupted(int(reason)) from None
        raise UserError(reason or "a process of the run was lost; --resume auto goes on") from None


def _reason(store: dist.Store) -> str:
    """Why another process has ended; "" where it left no reason, as after a SIGKILL."""
    # Its connections may close before its reason arrives.
    for _ in range(20):
        if store.check(["reason"]):
            return store.get("reason").decode()
        time.sleep(0.1)
    return ""


def _ask(question: Callable[[], Answer], default: Answer) -> Answer:
    """What the store answers; the default where its process has gone or does not answer.

    A process that was stopped keeps its connections open, and the store would wait for ever.
    """
    answers = [default]

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(question())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[-1]


def largest_of_all(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_objects(value: Any) -> list:
    """Every process's value, in the order of their ranks."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def interleaved(values: Sequence) -> list:
    """All processes' values in turn: the first of each, then the second of each, …"""
    absent = object()
    turns = itertools.zip_longest(*gather_objects(list(values)), fillvalue=absent)
    return [value for turn in turns for value in turn if value is not absent]


def from_rank_zero(work: Callable[[], Any]) -> Any:
    """Do the work in process 0 alone; all return its result, or raise what it raised."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except Exception as problem:
            outcome[1] = problem
    dist.broadcast_object_list(outcome, device=torch.device("cpu"))
    result, failure = outcome
    if failure is not None:
        raise failure
    return result


def process_costs(
    start: float, ready: float, steps: int, device: torch.device
) -> list[dict[str, float]]:
    """What each process took: {"start": s, "step": s, "memory": MiB}, in the order of their ranks.

    start: seconds until its first step. ready: when that was, by `time.perf_counter`.
    steps: the number of steps since then.
    The memory is the peak: of the GPU where the process has one, else of the process.
    """
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        # Windows has no such module, and what only scores must not need it.
        import resource

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return gather_objects(
        {
            "start": start,
            "step": (time.perf_counter() - ready) / max(1, steps),
            "memory": memory / 2**20,
        }
    )


def cost_lines(process_costs: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """What `process_costs` measured, as a line of text for each process."""
    for number, cost in enumerate(process_costs):
        yield (
            f"Process {number}: {cost['start']:.1f} s to start, {cost['step']:.3f} s a step, "
            f"{cost['memory']:.0f} MiB"
        )


@contextlib.contextmanager
def node_leader_first() -> Iterator[None]:
    """Let one process of each node do the block first: the others find the files that it left."""
    if world_size() == 1:
        yield
        return
    node_rank, _ = node_rank_and_size()
    # A process that decodes, computes or downloads for its whole node may take long.
    patient_group: Any = dist.new_group(timeout=timedelta(days=1), backend="gloo")
    # The leader enters the barrier when it is done, and the others wait in it.
    if node_rank != 0:
        dist.barrier(patient_group)
    yield
    if node_rank == 0:
        dist.barrier(patient_group)
    dist.destroy_process_group(patient_group)


def check_same_in_all(title: str, value: Mapping[str, Any]) -> None:
    """Raise UserError where the processes' values differ, naming the first difference.

    title: what the values are, for the message. Only process 0 raises; the others end with it.
    """
    for number, other_value in enumerate(gather_objects(dict(value))):
        for name in {**value, **other_value}:
            if value.get(name) != other_value.get(name) and rank() == 0:
                raise UserError(
                    f"the processes' {title} differ: {name} is {value.get(name)} in 0 "
                    f"and {other_value.get(name)} in {number}"
                )
