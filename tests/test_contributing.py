"""The examples of CONTRIBUTING.md, applied to a copy of the project that then trains with them."""

import ast
import json
import re
import shutil

from helpers import write_images
from processes import ROOT

BLOCK = re.compile(r"```python\n# (\S+), (at the end|above|in) ?(\w*)([^\n]*)\n(.*?)```", re.S)

# Runs in a process that has imported the modules of the checkout: the copy's must replace them.
FRESH = """
import runpy, sys
for name in [*sys.modules]:
    if name.split(".")[0] in ("hyperiqa", "HyperIQASolver", "HyperIQASolver_swin"):
        del sys.modules[name]
sys.path[:] = [".", "tests", "tests/runs", *sys.path[1:]]
"""
TESTS = """
import pytest
files = ["tests/training/test_losses.py", "tests/model/test_fusion.py"]
choices = "definition or choices or takes_a_plain or any_csv or whole_maps"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", choices, *files,
                      "tests/training/test_augmentations.py", "tests/training/test_optimizers.py"]))
"""
TRAIN = """
sys.argv[0] = "train_swin.py"
runpy.run_path("train_swin.py", run_name="__main__")
"""


def applied(text, place, name, more, code):
    """The source `text` with an example of CONTRIBUTING.md in its place."""
    lines = text.splitlines(keepends=True)
    body = ast.parse(text).body
    if place == "at the end":
        return f"{text}\n\n{code}"
    (node,) = (
        node
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and getattr(getattr(node, "target", None) or node.targets[0], "id", None) == name
    )
    if place == "above":
        return "".join([*lines[: node.lineno - 1], code, "\n\n", *lines[node.lineno - 1 :]])
    before = (
        "".join(lines[: node.end_lineno - 1])
        + lines[node.end_lineno - 1][: node.end_col_offset - 1]
    )
    rest = text[len(before) :]
    if more:
        start = before.rindex(more.removeprefix(" before "))
        before, rest = before[:start], before[start:] + rest
    comma = "" if before.rstrip().endswith(",") else ","
    return f"{before}{comma} {code.strip()} {rest}"


def test_the_examples_work_as_they_are_written(tmp_path, launcher, koniq):
    copy = tmp_path / "copy"
    unneeded = shutil.ignore_patterns(
        ".*", "__pycache__", "docs", "logs", "cache", "checkpoints", "demo"
    )
    shutil.copytree(ROOT, copy, ignore=unneeded)
    examples = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(examples) == (ROOT / "CONTRIBUTING.md").read_text().count("```python") == 20
    for path, place, name, more, code in examples:
        (copy / path).write_text(applied((copy / path).read_text(), place, name, more, code))
    write_images(tmp_path / "mine" / "images", [f"{n}.png" for n in range(10)])
    rows = "".join(f"{n}.png,{10 * n}\n" for n in range(10))
    (tmp_path / "mine" / "scores.csv").write_text("file,mos\n" + rows)

    (copy / "fresh_tests.py").write_text(FRESH + TESTS)
    (copy / "fresh_train.py").write_text(FRESH + TRAIN)
    done = launcher.tool(copy / "fresh_tests.py", cwd=copy)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
    words = (
        f"--dataset mine --dataset_path {tmp_path / 'mine'} --loss huber --fusion last_two --augment hflip grey "
        "--lr_scheduler linear --optimizer rmsprop --backbone swin_nano --no_pretrained --patch_size 64 --resize 72 "
        "--train_patch_num 1 --batch_size 8 --epochs 1 --precision fp32 --no_spaq --no_cache --run_name new"
    )
    done = launcher.tool(copy / "fresh_train.py", *words.split(), cwd=copy)
    assert done.returncode == 0, done.stderr
    run, epoch = [
        json.loads(line) for line in (copy / "logs" / "new.jsonl").read_text().splitlines()
    ][:2]
    assert run["flags"]["fusion"] == "last_two" and run["flags"]["lr_scheduler"] == "linear"
    assert epoch["train"]["huber"] > 0
