import json

import pytest
import torch

from hyperiqa.base.errors import NothingToDo, UserError
from hyperiqa.training.state import RunState
from HyperIQASolver import HyperIQASolver


def run(options):
    solver = HyperIQASolver(options)
    solver.run()
    return solver


def epochs(solver):
    records = [json.loads(line) for line in solver.log.path(".jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records if r["type"] == "epoch"]


def interrupted(options, monkeypatch, epoch):
    """A run that fails when it begins this epoch, after its last state was saved."""

    class Stops(HyperIQASolver):
        def begin_epoch(self, number):
            if number == epoch:
                raise UserError("stopped")
            super().begin_epoch(number)

    solver = Stops(options)
    with pytest.raises(UserError, match="stopped"):
        solver.run()
    return solver


def test_the_same_command_again_says_that_the_run_is_done(settings, capsys):
    flags = ("--no_spaq", "--epochs", 1, "--run_name", "mine", "--resume", "auto")
    log = run(settings("resnet", *flags)).log.path(".log")
    before = log.read_text()
    with pytest.raises(NothingToDo, match="^mine has finished already$"):
        run(settings("resnet", *flags))
    with pytest.raises(
        UserError, match=r"--run_name mine: other settings \(the run's -> yours\): seed 42 -> 1$"
    ):
        run(settings("resnet", *flags, "--seed", 1))
    assert log.read_text() == before


@pytest.mark.parametrize(
    "schedule",
    [
        ("--lr_scheduler", "none"),
        ("--lr_scheduler", "step", "--training_fixes", "all"),
        ("--lr_scheduler", "plateau", "--plateau_patience", 0, "--ema", 0.5),
    ],
)
def test_a_finished_run_made_longer_is_the_run_that_was_longer_from_the_start(settings, schedule):
    flags = ("--no_spaq", *schedule, "--no_early_stopping")
    run(settings("resnet", *flags, "--epochs", 1, "--run_name", "short"))
    longer = run(
        settings("resnet", *flags, "--epochs", 3, "--run_name", "short", "--resume", "auto")
    )
    whole = run(settings("resnet", *flags, "--epochs", 3, "--run_name", "whole"))
    assert epochs(longer) == epochs(whole) and len(epochs(whole)) == 3
    assert (
        longer.log.path("_predictions.csv").read_text()
        == whole.log.path("_predictions.csv").read_text()
    )
    with pytest.raises(NothingToDo, match="short has finished already, of 3 epochs"):
        run(settings("resnet", *flags, "--epochs", 2, "--run_name", "short", "--resume", "auto"))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            (),
            "it has finished its 1 epoch and cannot go on to 2: the rates of --lr_scheduler cosine depend on --epochs",
        ),
        (
            ("--lr_scheduler", "none", "--train_test_num", 2),
            "its earlier rounds have ended",
        ),
    ],
)
def test_what_cannot_be_made_longer_says_why(settings, flags, reason):
    flags = ("--no_spaq", *flags, "--run_name", "mine", "--resume", "auto")
    run(settings("resnet", *flags, "--epochs", 1))
    with pytest.raises(UserError, match=f"--run_name mine: .*{reason}"):
        run(settings("resnet", *flags, "--epochs", 2))


def test_where_none_can_be_taken_up_the_nearest_is_named(settings, monkeypatch, capsys):
    interrupted(
        settings("resnet", "--no_spaq", "--run_name", "far", "--seed", 1, "--lr", 1e-4),
        monkeypatch,
        2,
    )
    interrupted(settings("resnet", "--no_spaq", "--run_name", "near"), monkeypatch, 2)
    capsys.readouterr()
    run(settings("resnet", "--no_spaq", "--weight_decay", 0, "--epochs", 1, "--resume", "auto"))
    said = "the nearest unfinished one, near, has other settings: epochs 2 -> 1; weight_decay 0.0005 -> 0.0"
    assert f"Nothing to resume: starting a new run ({said})\n" in capsys.readouterr().out


def test_going_on_touches_no_log_and_no_model_of_others(settings, monkeypatch, tmp_path):
    log = interrupted(settings("resnet", "--no_spaq", "--run_name", "mine"), monkeypatch, 2).log
    folder = log.checkpoints
    other = tmp_path / "other"
    other.mkdir()
    for path in (other / "mine.jsonl", other / "mine.log"):
        path.write_text("another's\n" * 1000)
        with pytest.raises(UserError, match=f"--resume .*: {path} is not of this run"):
            run(settings("resnet", "--no_spaq", "--log_dir", other, "--resume", folder))
        assert path.read_text() == "another's\n" * 1000
        path.unlink()
    (own,) = folder.glob("best_model*.pkl")
    # Written by a process that was killed before it saved its state.
    leftover = folder / "best_model_srcc_0.0001_plcc_0.0001.pkl"
    leftover.write_bytes(own.read_bytes())
    model_of_another = torch.load(own, weights_only=True)
    model_of_another._metadata["hyperiqa"]["run"] = "another"
    users = {
        "best_model_srcc_0.0002_plcc_0.0002.pkl": model_of_another,
        "best_model_srcc_mine.pkl": torch.load(own, weights_only=True),
        "best_model_srcc_0.0003_plcc_0.0003.pkl": {"x": torch.zeros(1)},
    }
    for name, content in users.items():
        torch.save(content, folder / name)
    (folder / "round_backup").mkdir()
    (folder / "round_backup/last.pt").write_text("mine")
    run(settings("resnet", "--no_spaq", "--resume", folder))
    assert not leftover.exists()
    assert {path.name for path in folder.glob("best_model*.pkl")} > users.keys()
    assert (folder / "round_backup/last.pt").read_text() == "mine"


def test_an_unfinished_run_of_version_0_7_goes_on(settings, monkeypatch):
    """Its records and states know neither cross tests as a list, nor the names of loss parts, nor later flags."""
    flags = ("--no_early_stopping", "--ranking_loss_alpha", 0.3, "--checkpoint_minutes", 0)

    class StopsInEpoch2(HyperIQASolver):
        def stop_if_asked(self):
            if self.state.epoch == 2 and self.state.progress.step == 1:
                raise UserError("stopped")

    solver = StopsInEpoch2(settings("resnet", *flags, "--run_name", "old"))
    with pytest.raises(UserError, match="stopped"):
        solver.run()
    last, jsonl = solver.log.checkpoints / "last.pt", solver.log.path(".jsonl")
    state = torch.load(last, weights_only=True)
    names = state["progress"].pop("names")
    assert names == ["loss", "l1", "rank"]
    old = {"spaq": True, "spaq_resize": "72"}
    state["settings"] = {k: v for k, v in state["settings"].items() if k != "cross_resize"} | old
    torch.save(state, last)
    first, *rest = jsonl.read_text().splitlines()
    record = json.loads(first)
    record["flags"] = {
        k: v for k, v in record["flags"].items() if k not in ("cross_resize", "cross_test")
    } | old
    record["flags"] = dict(sorted(record["flags"].items()))
    jsonl.write_text("\n".join([json.dumps(record), *rest]) + "\n")
    state["lengths"][1] = jsonl.stat().st_size
    torch.save(state, last)
    went_on = run(settings("resnet", *flags, "--resume", "auto"))
    assert went_on.log.name == "old"
    assert epochs(went_on) == epochs(run(settings("resnet", *flags, "--run_name", "new")))


def test_whether_an_epoch_is_better():
    nan = float("nan")
    state = RunState({})
    assert [state.is_better("test", srcc) for srcc in (nan, 0.5)] == [None, True]
    state.keep({"test": {"srcc": nan}}, "a.pkl", [])
    assert [state.is_better("test", srcc) for srcc in (nan, -0.5)] == [None, True]
    state.keep({"test": {"srcc": 0.5}}, "b.pkl", [])
    assert [state.is_better("test", srcc) for srcc in (nan, 0.4, 0.5, 0.6)] == [
        False,
        False,
        False,
        True,
    ]
    assert state.best["files"] == ["b.pkl", "a.pkl"]
