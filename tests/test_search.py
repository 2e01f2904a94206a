import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

import search
from hyperiqa.base import launching
from hyperiqa.base.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# A training script as far as search.py knows one: it takes flags and leaves NAME.jsonl. Its "figure" is its lr.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
log = Path(flags["--log_dir"]) / f"{flags['--run_name']}.jsonl"
log.parent.mkdir(exist_ok=True)
def record(**fields):
    with log.open("a") as file:
        file.write(json.dumps(fields) + "\\n")
if log.exists():  # unfinished: taken up again
    if flags["--resume"] != "auto":
        sys.exit("error: --run_name: taken")
    log.unlink()
print("ran", flags["--lr"], flags["--seed"], os.environ.get("CUDA_VISIBLE_DEVICES"))
with (log.parent / "order.txt").open("a") as file:
    file.write(f"{flags['--lr']} {flags['--seed']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
names = {name[2:]: value for name, value in flags.items()}
record(type="run", at=time.time(), flags=names | {"seed": int(flags["--seed"])}, data={"test": 500})
if flags["--lr"] == flags.get("--bad"):
    print("Traceback (most recent call last):\\n  x\\nerror: lr is bad\\nlast words", file=sys.stderr)
    sys.exit(2)
status = "finished"
try:
    time.sleep(float(flags.get("--sleep", 0)))
    srcc = float(flags["--lr"]) + int(flags["--seed"]) / 1e4
    record(type="epoch", round=1, epoch=1, train={"srcc": 0.5}, test={"srcc": srcc, "plcc": srcc})
except KeyboardInterrupt:
    status = "interrupted"
    raise
finally:
    record(type="end", at=time.time(), status=status, rounds=[{"round": 1, "seed": int(flags["--seed"])}])
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train_it.py"
    path.write_text(SCRIPT)
    return path


def command(script, *words):
    return [sys.executable, ROOT / "search.py", script, *map(str, words)]


def tool(script, *words, code=0):
    done = subprocess.run(
        command(script, *words), capture_output=True, text=True, cwd=script.parent
    )
    assert done.returncode == code, done.stderr
    return done


def ran(script):
    return sorted((script.parent / "logs/order.txt").read_text().splitlines())


def test_split_of_the_command_line():
    words = "train.py --lr 1 -2 --jobs 2 --margin=0.5 0.7 --gpus=0,1 -- --epochs 5 --lr_ratio 3"
    own, grid, common = search.split(words.split())
    assert own == ["train.py", "--jobs", "2", "--gpus=0,1"]
    assert grid == {"--lr": ["1", "-2"], "--margin": ["0.5", "0.7"]}
    assert common == ["--epochs", "5", "--lr_ratio", "3"]


@pytest.mark.parametrize(
    "words, said",
    [
        ("--lr", "--lr: expected values"),
        ("--lr 1 --lr 2", "given twice"),
        ("--lr 1 2 -- --lr 3", "both as a searched flag and after --"),
        ("--lr 1 --run_name x", "--run_name: search.py sets it itself"),
        ("--lr 1 -- --log_dir x", "--log_dir: expected before --"),
        ("--seed 1 2 --seeds 2", "contradicts"),
        ("--lr 1 --jobs 0", "--jobs 0: expected a whole number of at least 1"),
        ("--lr 1 --gpus a", "expected numbers such as 0,1"),
        ("--lr 1 --log_dir /dev/null/x", "--log_dir /dev/null/x: cannot be written there"),
    ],
)
def test_mistakes(script, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        search.parse([str(script), *words.split()])
    with pytest.raises(UserError, match="no such script"):
        search.parse(["none.py"])


def test_names_are_a_function_of_what_is_computed(tmp_path):
    def names(grid, common=(), seeds=1):
        options = Namespace(script=Path("train_swin.py"), seeds=seeds, log_dir=tmp_path, each=False)
        return [job.name for job in search.plan(options, grid, list(common))]

    grid = {"--lr": ["1", "2"], "--fusion": ["none", "concat"]}
    assert len(set(names(grid))) == 4
    assert names(grid) == names(grid)
    assert names(grid) == names(grid, ["--checkpoint_dir", "elsewhere"])
    assert not set(names(grid)) & set(names(grid, ["--epochs", "5"]))
    # More seeds later: what is there counts.
    assert set(names(grid)) < set(names(grid, seeds=3))
    assert names(grid, ["--seed", "7"])[0].startswith("search_lr=1_fusion=none_seed=7_")
    odd = names({"--path": ["a/b", "a-b", "ü" * 300]})
    assert len(set(odd)) == 3
    assert all(re.fullmatch(r"[\w.+=-]{1,150}", name) for name in odd)


def test_dry_run_prints_commands_that_a_shell_understands(script):
    out = tool(
        script, "--lr", "1", "2", "--seeds", "2", "--dry_run", "--", "--note", "two words"
    ).stdout
    lines = out.splitlines()
    assert len(lines) == 4
    assert all("'two words'" in line and "--run_name search_lr=" in line for line in lines)
    assert not (script.parent / "logs").exists()


def test_a_search_ends_with_the_table_best_first(script):
    done = tool(script, "--lr", "0.1", "0.5", "0.3", "--seeds", "2", "--", "--note", "x")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("lr=")]
    assert [row[0] for row in rows] == ["lr=0.5", "lr=0.3", "lr=0.1"]
    assert rows[0][2] == "2"
    # Seeds 42 and 43 add 0.0042 and 0.0043.
    assert rows[0][4] in ("0.5042", "0.5043")
    assert ran(script) == sorted(f"{lr} {seed} None" for lr in (0.1, 0.5, 0.3) for seed in (42, 43))
    assert not list((script.parent / "logs").glob("*.output"))
    # No bar, for standard error is no terminal: a line for each run.
    lines = done.stderr.splitlines()
    assert lines[-1].endswith(" ended, 0 runs left")
    assert len(lines) == 6 and all(" ended, " in line for line in lines)


def test_a_finished_run_is_not_repeated(script):
    tool(script, "--lr", "0.1", "0.5")
    out = tool(script, "--lr", "0.1", "0.5", "0.3").stdout
    assert "3 runs, 2 finished already" in out
    assert ran(script) == ["0.1 42 None", "0.3 42 None", "0.5 42 None"]
    assert "# finished" in tool(script, "--lr", "0.1", "--dry_run").stdout


def test_a_failed_run_is_reported_and_the_rest_goes_on(script):
    done = tool(script, "--lr", "0.1", "0.2", "0.3", "--", "--bad", "0.2", code=1)
    assert "error: lr is bad" in done.stderr
    assert "search_lr=0.2" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("lr=")] == [
        "lr=0.3",
        "lr=0.1",
    ]
    (output,) = (script.parent / "logs").glob("*.output")
    assert "last words" in output.read_text()


def test_jobs_run_at_once_on_their_gpus(script):
    tool(script, "--lr", "0.1", "0.2", "0.3", "--gpus", "4,7", "--", "--sleep", "1")
    records = [
        [json.loads(line) for line in p.open()] for p in (script.parent / "logs").glob("*.jsonl")
    ]
    times = sorted((run["at"], end["at"]) for run, _, end in records)
    assert times[1][0] < times[0][1]
    assert times[2][0] > min(end for _, end in times[:2])
    gpus = [line.split()[2] for line in ran(script)]
    assert set(gpus) == {"4", "7"}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_ends_its_runs_and_goes_on_later(script, kind):
    words = ["--lr", "0.1", "0.2", "--", "--note", "x"]
    logs = script.parent / "logs"
    slow = script.read_text()
    # The second run waits until it is interrupted; the script's text is no part of a run's name.
    script.write_text(slow.replace("time.sleep(", "time.sleep(60 if flags['--lr'] == '0.2' else "))
    process = subprocess.Popen(
        command(script, *words), cwd=script.parent, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (logs / "order.txt").exists() or len(ran(script)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(kind)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: 1 of 2 runs finished" in said
    (unfinished,) = logs.glob("search_lr=0.2*.jsonl")
    assert json.loads(unfinished.read_text().splitlines()[-1])["status"] == "interrupted"
    script.write_text(slow)
    out = tool(script, *words).stdout
    assert "2 runs, 1 finished already" in out
    assert ran(script) == ["0.1 42 None", "0.2 42 None", "0.2 42 None"]
    assert json.loads(unfinished.read_text().splitlines()[-1])["status"] == "finished"
    assert "2 runs, 2 finished already" in tool(script, *words).stdout


@pytest.mark.parametrize("launcher", [[], ["--launcher", "local"]])
def test_the_runs_of_a_killed_search_end_too(script, launcher):
    if launcher:
        pytest.importorskip("submitit")
    logs = script.parent / "logs"
    words = ("--lr", 0.1, 0.2, "--jobs", 2, *launcher, "--", "--sleep", 100)
    process = subprocess.Popen(
        command(script, *words), cwd=script.parent, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (logs / "order.txt").exists() or len(ran(script)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()

    def statuses():
        last_lines = [path.read_text().splitlines()[-1] for path in logs.glob("*.jsonl")]
        return [json.loads(line).get("status") for line in last_lines]

    while statuses() != ["interrupted", "interrupted"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_that_ignores_the_interrupt_is_killed():
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=dict(os.environ),
    )
    process.stdout.readline()
    launching.end_programs([process], patience=0.5)
    assert process.returncode == -signal.SIGKILL


def test_last_error_of_an_output(tmp_path):
    output = tmp_path / "x"
    for text, last in (
        ("a\nerror: b\nc\n", "error: b"),
        ("bar\rTraceback\nValueError: x\n\n", "ValueError: x"),
        ("", "no output"),
    ):
        output.write_text(text)
        assert launching.last_error(output) == last


def test_the_real_train_script_takes_the_flags(tmp_path):
    # Its own check of flags, which comes before any import of torch, names the value that search passed on.
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "search.py",
            ROOT / "train_swin.py",
            *"--lr -1 --ranking_loss_alpha 7".split(),
        ]
        + [
            "--log_dir",
            tmp_path,
            "--",
            "--dataset",
            "koniq-10k",
            "--checkpoint_dir",
            tmp_path / "ck",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    for said in ("--ranking_loss_alpha 7.0: expected a number from 0 to 1", "--lr -1.0: expected"):
        assert said in done.stderr


def test_each_changes_one_flag_at_a_time(script):
    grid = ("--lr", "0.1", "0.3", "--augment", "hflip", "hflip blur", "--seeds", 2)
    shown = tool(script, "--each", *grid, "--dry_run").stdout.splitlines()
    told = [
        re.search(r"(--lr.*) --log_dir", line)[1].replace(" --seed 42", "")
        for line in shown
        if "--seed 42" in line
    ]
    assert told == [
        "--lr 0.1 --augment hflip",
        "--lr 0.3 --augment hflip",
        "--lr 0.1 --augment hflip blur",
    ]
    table = tool(script, "--each", "--lr", "0.1", "0.3", "--margin", "1", "2", "--seeds", 2).stdout
    rows = [line.split()[0] for line in table.splitlines() if re.match(r"\S+ .*0\.\d{4}", line)]
    assert rows[0] == "lr=0.3" and {*rows[1:]} == {"default", "margin=2"}
    assert len(ran(script)) == 6
    assert tool(
        script, "--each", "--lr", "0.1", "0.3", "--margin", "1", "2", "--seeds", 2
    ).stdout.startswith("6 runs, 6 finished")
    # Another default is another set of runs.
    assert tool(script, "--each", "--lr", "0.3", "0.1", "--seeds", 2).stdout.startswith(
        "4 runs, 0 finished"
    )


def test_two_searches_of_one_folder_share_the_work(script):
    """Each run is made once; the one that is killed in the middle is taken up by the other."""
    words = ("--lr", 0.1, 0.2, 0.3, 0.4, "--", "--sleep", 1)
    both = [
        subprocess.Popen(
            command(script, *words), cwd=script.parent, stdout=subprocess.PIPE, text=True
        )
        for _ in "ab"
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert ran(script) == [f"{lr} 42 None" for lr in (0.1, 0.2, 0.3, 0.4)]
    assert all(
        text.count("lr=0.4") == 1 and text.index("lr=0.4") < text.index("lr=0.1") for text in said
    )


def test_what_a_killed_search_was_running_is_taken_up_by_another(script):
    words = ("--lr", 0.1, 0.2, "--", "--sleep", 2)
    first = subprocess.Popen(command(script, *words), cwd=script.parent, start_new_session=True)
    order = script.parent / "logs/order.txt"
    while not order.exists():
        time.sleep(0.05)
    second = subprocess.Popen(command(script, *words), cwd=script.parent)
    first.kill()
    assert second.wait() == 0
    assert {line.split()[0] for line in ran(script)} == {"0.1", "0.2"}


def test_runs_as_jobs_of_a_cluster(script):
    """By submitit's executor for this machine; a run that fails says why."""
    pytest.importorskip("submitit")
    words = ("--lr", 0.1, 0.2, "--launcher", "local", "--time", 0.1, "--", "--bad", 0.2)
    done = tool(script, *words, code=1)
    assert "lr=0.1" in done.stdout and re.search(
        r"failed: search_lr=0.2.*: error: lr is bad", done.stderr
    )
