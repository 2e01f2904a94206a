import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.base.version import versions
from hyperiqa.training.log import RunLog


def test_a_taken_name_gets_a_suffix_and_an_own_taken_name_is_an_error(tmp_path):
    logs, models = tmp_path / "logs", tmp_path / "checkpoints"
    first = RunLog(logs, models, "swin", explicit=False)
    second = RunLog(logs, models, "swin", explicit=False)
    assert (first.name, second.name) == ("swin", "swin_2")
    (models / "mine").mkdir()
    with pytest.raises(UserError, match="--run_name mine: taken"):
        RunLog(logs, models, "mine", explicit=True)
    assert not (logs / "mine.log").exists()


def test_runs_that_start_together_get_different_names(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: RunLog(tmp_path / "l", tmp_path / "c", "run", False).name, range(16))
        )
    assert len(set(made)) == 16 and len(list((tmp_path / "c").iterdir())) == 16


@pytest.mark.parametrize(
    "name", ["mine_predictions.csv", "mine_epochs.npz", "mine_round2_predictions.csv", "mine.log"]
)
def test_a_run_does_not_take_a_name_whose_files_it_would_replace(tmp_path, name):
    (tmp_path / name).write_text("the user's")
    with pytest.raises(UserError, match="--run_name mine: taken"):
        RunLog(tmp_path, tmp_path / "c", "mine", explicit=True)
    assert RunLog(tmp_path, tmp_path / "c", "mine", explicit=False).name == "mine_2"
    assert (tmp_path / name).read_text() == "the user's"


def test_what_killed_processes_were_writing_is_swept_at_resume_and_at_the_end(tmp_path):
    log = RunLog(tmp_path, tmp_path / "c", "run", explicit=True)
    round2 = log.checkpoints / "round2"
    round2.mkdir()
    best = "best_model_srcc_-0.1234_plcc_nan.pkl"
    unfinished = [
        log.checkpoints / ".last.pt.a1b2c3_d.tmp",
        round2 / f".{best}.abcdefgh.tmp",
        tmp_path / ".run_predictions.csv.abcdefgh.tmp",
        tmp_path / ".run_epochs.npz.abcdefgh.tmp",
    ]
    others = [
        log.checkpoints / ".last.pt.abcdefg.tmp",
        log.checkpoints / "last.pt.abcdefgh.tmp",
        log.checkpoints / ".notes.abcdefgh.tmp",
        # Another run's, which may be writing it.
        tmp_path / ".run_round2_predictions.csv.abcdefgh.tmp",
        tmp_path / ".run_2_predictions.csv.abcdefgh.tmp",
    ]
    (log.checkpoints / "elsewhere").mkdir()
    others.append(log.checkpoints / "elsewhere/.last.pt.abcdefgh.tmp")

    def write():
        for path in unfinished + others:
            path.write_text("x")

    write()
    log.close()
    assert [path for path in unfinished + others if path.exists()] == others
    write()
    again = RunLog.take_up(tmp_path, log.checkpoints)
    assert [path for path in unfinished + others if path.exists()] == others
    again.close()


def test_lines_records_and_predictions(tmp_path, capsys):
    log = RunLog(tmp_path, tmp_path / "c", "run", explicit=True)
    log.line("Epoch\tTrain_Loss")
    log.record(type="epoch", test={"srcc": float("nan"), "plcc": 0.5}, path=Path("a"), fixes=("x",))
    log.predictions(1, [("koniq-10k", 'a "b".jpg', 50.0, 49.5)])
    log.predictions(2, [])
    assert capsys.readouterr().out == (tmp_path / "run.log").read_text() == "Epoch\tTrain_Loss\n"
    record = json.loads((tmp_path / "run.jsonl").read_text())
    assert record == {
        "type": "epoch",
        "test": {"srcc": None, "plcc": 0.5},
        "path": "a",
        "fixes": ["x"],
    }
    table = (tmp_path / "run_predictions.csv").read_text()
    assert table == 'dataset,image,mos,score\nkoniq-10k,"a ""b"".jpg",50.0,49.5\n'
    assert (tmp_path / "run_round2_predictions.csv").read_text() == "dataset,image,mos,score\n"


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/logs: cannot write logs or checkpoints"):
        RunLog(tmp_path / "file" / "logs", tmp_path / "c", "run", explicit=False)


def test_versions_and_plain_values():
    found = versions()
    assert set(found) == {
        "hyperiqa",
        "python",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "scipy",
        "pillow",
        "commit",
    }
    assert (
        json.dumps(to_json_value({"a": float("inf"), "b": (1, None, True)}))
        == '{"a": null, "b": [1, null, true]}'
    )
