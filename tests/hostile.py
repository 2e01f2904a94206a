"""Damages descriptions, certificates and records by seed and has the real tools read them.

`python hostile.py FOLDER FIRST COUNT [all]` makes a small run in FOLDER, where there is none yet, then damages one value
of it after another: the cases FIRST to FIRST + COUNT. Each damaged file is read by one of the tools that read such a
file, or by all of them. It prints each fault: a traceback, more than one line of error, a wrong exit code, or more
seconds or memory than the undamaged file takes and the issue allows. Its exit code is 1 if there is one.

The tools run in forks of this process, which has torch loaded.
"""

import copy
import csv
import itertools
import json
import math
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("description", "certificate", "record")
TRAIN = (
    "train_timm.py --train_patch_num 1 --batch_size 8 --epochs 1 --no_spaq "
    "--no_cache --patch_size 32 --resize none --device cpu --dataset csv --dataset_path {f}/base/mine.csv"
).split()
RANDOM = "--backbone resnet18 --no_pretrained".split()
PLACES = "--log_dir {f}/logs --checkpoint_dir {f}/checkpoints".split()
SCRATCH = "--log_dir {f}/new --checkpoint_dir {f}/new".split()
# What reads a model, and what reads records.
MODEL_TOOLS = {
    "predict": "predict.py {f}/damaged.safetensors {f}/base/p000.png --output {f}/new/s.csv --device cpu".split(),
    "evaluate": "evaluate.py {f}/damaged.safetensors --datasets csv:other={f}/other/mine.csv --no_cache --resamples 100 "
    "--device cpu".split(),
    "certify": "certify.py {f}/damaged.safetensors --no_cache --device cpu".split(),
    "--init": [*TRAIN, *SCRATCH, "--init", "{f}/damaged.safetensors"],
    "--teacher": [*TRAIN, *RANDOM, *SCRATCH, "--teacher", "{f}/damaged.safetensors"],
}
RECORD_TOOLS = {
    "compare_logs": "compare_logs.py {f}/damaged".split(),
    "report": "report.py {f}/damaged --output {f}/new/r.html --no_cache --maps 1 --device cpu".split(),
}
# Seconds and bytes that a damaged file may take beyond an undamaged one.
MORE_SECONDS = 10
MORE_BYTES = 2**30

NESTED: list = []
for _ in range(3000):
    NESTED = [NESTED]
VALUES = [
    None, True, False, 0, -1, 1, 2, 63.5, 10**9, -(10**9), 10**400, 1e308, math.nan, math.inf, "", "x", "évil\x1b[2J",
    "../../../etc/passwd", "/dev/zero", "-", "1", "none", "x" * 10**6, [], [1], ["x"], [[]], [None] * 3, [0] * 10**6, {},
    {"x": 1}, {"srcc": "x"}, {"": {}}, NESTED,
]  # fmt: skip


def write_set(folder: Path, number: int, first: int) -> None:
    folder.mkdir(parents=True)
    rows = [("image", "mos", "split")]
    rng = np.random.default_rng(first)
    for i in range(number):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i:03}.png")
        rows.append((f"p{i:03}.png", str(10 + 7 * i % 80), "test" if i % 3 == 2 else "train"))
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def places_of(value: object, outer: tuple = ()) -> list[tuple]:
    """Where a value and all that is in it lies: the keys that lead to each."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        items = []
    inner = [places_of(item, (*outer, key)) for key, item in items]
    return [outer, *itertools.chain.from_iterable(inner)]


def damage(value: object, rng: np.random.Generator) -> tuple[object, str]:
    """A copy with one value replaced, left out, or moved; and what was done."""
    value = copy.deepcopy(value)
    places = places_of(value)[1:]
    # Each depth alike: most values lie deep inside.
    depth = rng.choice(sorted({len(place) for place in places}))
    *outer, key = [place for place in places if len(place) == depth][
        rng.integers(sum(len(place) == depth for place in places))
    ]
    holder = value
    for step in outer:
        holder = holder[step]
    way = rng.integers(8)
    if way == 0:
        del holder[key]
        done = "left out"
    elif way == 1:
        other = value
        for step in places[rng.integers(len(places))]:
            other = other[step]
        holder[key] = copy.deepcopy(other)
        done = f"another's value {other!r:.40}"
    else:
        number = rng.integers(len(VALUES))
        holder[key] = VALUES[number]
        done = "nested" if VALUES[number] is NESTED else f"{VALUES[number]!r:.40}"
    return value, f"{'.'.join(map(str, [*outer, key]))}: {done}"


def run_fork(words: list[str], folder: Path) -> tuple[int, str, float, int]:
    """Run a tool in a fork; returns (exit code, standard error, CPU seconds, peak memory in bytes)."""
    errors = folder / "errors.txt"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for descriptor, path in ((1, folder / "output.txt"), (2, errors)):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CPU, (90, 100))
            resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, 8 * 2**30))
            sys.argv = [str(ROOT / words[0]), *words[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    text = errors.read_text(errors="replace")
    return (
        os.waitstatus_to_exitcode(status),
        text,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
    )


def fault(result: tuple, sound: tuple) -> str | None:
    """What is wrong with how a tool took a damaged file; None where nothing is."""
    code, text, seconds, memory = result
    _, _, sound_seconds, sound_memory = sound
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text or code not in (0, 1, 2, 3):
        lines = text.strip().splitlines()[-3:] or [""]
        return f"exit code {code}: {' | '.join(line[:160] for line in lines)}"
    if (code == 2) != (len(errors) == 1) or len(errors) > 1:
        return f"exit code {code} with {len(errors)} lines of error: {text[-200:]!r}"
    if errors and len(errors[0]) > 2000:
        return f"an error of {len(errors[0])} characters: {errors[0][:200]}"
    if "\x1b" in text:
        return "an escape sequence on standard error"
    if seconds > sound_seconds + MORE_SECONDS:
        return f"{seconds:.1f} s; undamaged {sound_seconds:.1f} s"
    if memory > sound_memory + MORE_BYTES:
        return f"{memory / 2**20:.0f} MiB; undamaged {sound_memory / 2**20:.0f} MiB"
    return None


class Cases:
    """A small run, and its damaged copies."""

    def __init__(self, folder: Path):
        from hyperiqa.model import checkpoints

        self.folder = folder
        if not (folder / "logs").exists():
            write_set(folder / "base", 12, 0)
            write_set(folder / "other", 9, 1)
            cross_test = ["--cross_test", "csv:other={f}/other/mine.csv", "--run_name", "base"]
            code, text, *_ = run_fork(self.filled([*TRAIN, *RANDOM, *PLACES, *cross_test]), folder)
            assert code == 0, text
        self.state, self.description = checkpoints.load_model(
            checkpoints.find_model(folder / "checkpoints" / "base")
        )
        del self.description["described"]
        self.records = (folder / "logs" / "base.jsonl").read_text().splitlines()
        (folder / "new").mkdir(exist_ok=True)
        (folder / "damaged").mkdir(exist_ok=True)
        for tool_name in ("base_predictions.csv", "base_epochs.npz"):
            (folder / "damaged" / tool_name).write_bytes((folder / "logs" / tool_name).read_bytes())

    def filled(self, words: list[str]) -> list[str]:
        return [word.replace("{f}", str(self.folder)) for word in words]

    def write(self, number: int | None) -> tuple[str, str]:
        """Write the damaged file of a case, or undamaged ones (None); returns its kind, and what was done."""
        rng = np.random.default_rng([11, number or 0])
        kind = KINDS[(number or 0) % len(KINDS)]
        description, records, done = self.description, self.records, "nothing"
        if number is not None and kind == "record":
            line = rng.integers(len(records))
            record, done = damage(json.loads(records[line]), rng)
            records = [*records[:line], self.as_json(record), *records[line + 1 :]]
            done = f"record {line} {done}"
        elif number is not None and kind == "certificate":
            damaged, done = damage(description["certificate"], rng)
            description = {**description, "certificate": damaged}
            done = f"certificate.{done}"
        elif number is not None:
            plain = {name: value for name, value in description.items() if name != "certificate"}
            damaged, done = damage(plain, rng)
            description = {**damaged, "certificate": description["certificate"]}
        if kind == "record" or number is None:
            (self.folder / "damaged" / "base.jsonl").write_text("\n".join(records) + "\n")
        if kind != "record" or number is None:
            self.write_model(description)
        return kind, done

    def write_model(self, description: dict) -> None:
        import safetensors.torch

        data = safetensors.torch.save(dict(self.state), {"hyperiqa": self.as_json(description)})
        (self.folder / "damaged.safetensors").write_bytes(data)

    @staticmethod
    def as_json(value: object) -> str:
        # The module refuses to write what is nested too deep; other writers do not.
        marked = json.dumps(value, default=str) if NESTED not in _all_values(value) else None
        if marked is not None:
            return marked
        return json.dumps(_without_nested(value)).replace('"NESTED"', "[" * 3000 + "]" * 3000)


def _all_values(value: object) -> list:
    if value is NESTED:
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [v for item in items if isinstance(item, dict | list) for v in _all_values(item)]


def _without_nested(value: object) -> object:
    if value is NESTED:
        return "NESTED"
    if isinstance(value, dict):
        return {key: _without_nested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nested(item) for item in value]
    return value


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    first, count = int(sys.argv[2]), int(sys.argv[3])
    with_all_tools = sys.argv[4:] == ["all"]
    sys.path.insert(0, str(ROOT))
    os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HOME=str(folder))
    import timm  # noqa: F401
    import torch

    import HyperIQASolver  # noqa: F401
    from hyperiqa.pages import page  # noqa: F401
    from hyperiqa.scoring import quality_model  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    folder.mkdir(parents=True, exist_ok=True)
    cases = Cases(folder)
    cases.write(None)
    sound = {
        name: run_fork(cases.filled(words), folder)
        for name, words in {**MODEL_TOOLS, **RECORD_TOOLS}.items()
    }
    for name, (code, text, *_) in sound.items():
        # The epoch was chosen on so few images that a figure may be undefined.
        assert code in (0, 3), f"{name} on an undamaged file: {code} {text}"
    faults = 0
    outcomes: dict[tuple[str, str, int], int] = {}
    begun = time.time()
    for number in range(first, first + count):
        kind, done = cases.write(number)
        tools = RECORD_TOOLS if kind == "record" else MODEL_TOOLS
        names = list(tools) if with_all_tools else [list(tools)[number // len(KINDS) % len(tools)]]
        for name in names:
            result = run_fork(cases.filled(tools[name]), folder)
            key = (kind, name, result[0])
            outcomes[key] = outcomes.get(key, 0) + 1
            problem = fault(result, sound[name])
            if problem:
                faults += 1
                print(f"case {number} {name}: {done}: {problem}", flush=True)
            shutil.rmtree(folder / "new")
            (folder / "new").mkdir()
    for (kind, name, code), total in sorted(outcomes.items()):
        print(f"{kind:12} {name:13} exit code {code}: {total}")
    print(f"{count} cases, {faults} faults, {time.time() - begun:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
