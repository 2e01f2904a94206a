"""A local Ray of two workers, one of which is killed, and what happens without Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import save_random_model
from test_shards import DESCRIPTION, listed, photo, rows_of, write_shard

from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.base.files import CHECKOUT

PER_SHARD = 100


def descendants(ancestor):
    """(process, its command line) of all processes below one, by /proc."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            words = (status.parent / "cmdline").read_text()
        # It has ended.
        except OSError:
            continue
        if parent == ancestor:
            yield int(status.parent.name), words
            yield from descendants(int(status.parent.name))


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_row(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    checkpoint = save_random_model(tmp_path / "model.pkl", DESCRIPTION, 30)
    photos = [photo(seed) for seed in range(PER_SHARD)]
    names = [f"photos-{i:02}.tar/{k}.jpg" for i in range(20) for k in range(PER_SHARD)]
    for i in range(20):
        write_shard(f"photos-{i:02}.tar", [(f"{k}.jpg", data) for k, data in enumerate(photos)])
    words = [checkpoint, "photos-{00..19}.tar", "--output", "rows", "--device", "cpu"]
    command = [sys.executable, CHECKOUT / "predict.py", *words]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*command, "--engine", "ray", "--engine_workers", "2"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(tmp_path.glob("rows/photos-*.csv"))) < 3:
        time.sleep(0.05)
    actors = [number for number, words in descendants(process.pid) if "MapBatches" in words]
    os.kill(actors[0], signal.SIGKILL)
    said = process.communicate()[1]
    assert len(actors) == 2 and process.returncode == 0, said
    assert said.endswith("rows: 2,000 images scored\n")
    assert [name for name in listed("rows") if name[0] != "."] == [
        f"photos-{i:02}.csv" for i in range(20)
    ]
    rows = [row for i in range(20) for row in rows_of(f"rows/photos-{i:02}.csv")]
    assert [row["image"] for row in rows] == names
    # The rows are those of one machine.
    one_machine = [*command[:3], "photos-{00..01}.tar", "--output", "one", "--device", "cpu"]
    subprocess.run(one_machine, check=True, env={**environment, "OMP_NUM_THREADS": "1"})
    assert rows_of("one/photos-01.csv") == rows[PER_SHARD : 2 * PER_SHARD]


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    checkpoint = save_random_model(tmp_path / "model.pkl", DESCRIPTION, 30)
    write_shard("a.tar", [("0.jpg", photo(0))])
    words = [checkpoint, "a.tar", "--output", "rows", "--device", "cuda:7", "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, CHECKOUT / "predict.py", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert listed("rows") == []


def test_without_ray_there_is_one_line(tmp_path):
    model = save_random_model(tmp_path / "model.pkl", DESCRIPTION)
    # A Python that has only what this folder offers.
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name: None if name == 'ray' else find(name);"
        "from hyperiqa.__main__ import command; command()"
    )
    words = [model, "a.tar", "--output", tmp_path / "rows", "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --engine ray needs ray[data]")
    assert done.stderr.count("\n") == 1


def test_an_engine_needs_a_folder_of_shards(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    model = save_random_model(tmp_path / "model.pkl", DESCRIPTION)
    with pytest.raises(UserError, match="^--engine ray: expected shards .* as --output$"):
        __main__.parse([str(model), "a.tar", "--engine", "ray", "--output", "rows.csv"])
