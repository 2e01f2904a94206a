import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import score_of

import compare_logs
import predict
import report
from hyperiqa.base.device import choose_device
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory, lora
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.model.swin import SwinBackbone
from hyperiqa.runs import reading
from hyperiqa.scoring import quality_model
from hyperiqa.stats import intervals, metrics
from HyperIQASolver import HyperIQASolver
from HyperIQASolver_swin import HyperIQASolverSwin


def run(options):
    solver = (HyperIQASolverSwin if options.backbone.startswith("swin") else HyperIQASolver)(
        options
    )
    solver.run()
    return solver


def records(solver):
    return [json.loads(line) for line in solver.log.path(".jsonl").read_text().splitlines()]


def without_times(solver):
    rows = [r for r in records(solver) if r["type"] in ("epoch", "end")]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "round", "rounds")} for row in rows
    ]


def table(path):
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("model", ["swin", "resnet"])
def test_a_run_leaves_what_the_design_says(settings, model):
    solver = run(settings(model, "--ranking_loss_alpha", 0.3, "--use_multiscale"))
    log = solver.log.path(".log").read_text()
    for line in (
        "Learning rate scheduler: CosineAnnealingLR (T_max=2, eta_min=1e-06)",
        "Early stopping enabled with patience=5",
        "koniq-10k: 12 train images, 6 test images",
        "SPAQ cross test: 5 images",
        "Epoch\tTrain_Loss\tTrain_SRCC\tTrain_PLCC\tTest_SRCC\tTest_PLCC\tSPAQ_SRCC\tSPAQ_PLCC",
    ):
        assert line + "\n" in log
    row = r"^%d\t\d+\.\d{3} \(L1:\d+\.\d{3},Rank:\d+\.\d{3}\)(\t(-?\d\.\d{4}|nan)){6}$"
    assert all(re.search(row % epoch, log, re.M) for epoch in (1, 2))
    assert re.search(r"^Learning rates: HyperNet=5\.00e-03, Backbone=5\.01e-04$", log, re.M)
    assert re.search(r"^Best SRCC: .*, Best PLCC: .* \(epoch [12]\)$", log, re.M)
    assert "\r" not in log and "\x1b" not in log and log.isascii()

    first, *epochs, last = records(solver)
    assert first["type"] == "run" and first["data"] == {"train": 12, "test": 6, "spaq": 5}
    assert first["flags"]["seed"] == 42 and set(first["fingerprint"]) == {"koniq-10k", "spaq"}
    for n, epoch in enumerate(epochs, 1):
        assert epoch["type"] == "epoch" and epoch["epoch"] == n and epoch["round"] == 1
        assert set(epoch["train"]) == {"loss", "l1", "rank", "srcc", "plcc"}
        assert epoch["train"]["loss"] == pytest.approx(
            0.7 * epoch["train"]["l1"] + 0.3 * epoch["train"]["rank"]
        )
        assert set(epoch["seconds"]) == {"train", "test", "spaq"}
    assert epochs[0]["lr"] == {"head": pytest.approx(1e-2), "backbone": pytest.approx(1e-3)}
    assert (
        last["type"] == "end"
        and last["status"] == "finished"
        and last["rounds"][0]["best_epoch"] in (1, 2)
    )

    best = epochs[last["rounds"][0]["best_epoch"] - 1]
    rows = table(solver.log.path("_predictions.csv"))
    for name, part, number in (("koniq-10k", "test", 6), ("spaq", "spaq", 5)):
        mos, scores = zip(*[(float(m), float(s)) for data, _, m, s in rows if data == name])
        assert sorted(mos) == [score_of(i, number) for i in range(number)]
        assert metrics.srcc(scores, mos) == pytest.approx(best[part]["srcc"], abs=1e-9)
    files = sorted(p.name for p in solver.log.checkpoints.iterdir() if p.name[0] != ".")
    assert len(files) == 3 and files[1:] == ["last.pt", "previous.pt"]
    assert (
        files[0]
        == f"best_model_srcc_{best['test']['srcc']:.4f}_plcc_{best['test']['plcc']:.4f}.pkl"
    )


def test_adapters_leave_an_ordinary_best_model_and_what_was_trained_beside_it(settings, tmp_path):
    """The encoder as it was, merged with the adapter's file, is the best model to the last bit."""
    torch.manual_seed(42)
    encoder = SwinBackbone("swin_nano", patch_size=64)
    base = tmp_path / "encoder.pth"
    checkpoints.save(base, encoder.backbone.state_dict())
    flags = ["--backbone", "swin_nano", "--lora", 2, "--ema", 0.9, "--epochs", 3, "--no_spaq"]
    solver = run(settings("swin", *flags))
    models = sorted(solver.log.checkpoints.glob("best*"))
    # The files of earlier best epochs are gone, adapters too.
    assert [model.name for model in models] == [
        solver.state.best["files"][0],
        solver.state.best["files"][0].replace(".pkl", "_adapter.safetensors"),
    ]
    state, description = checkpoints.load_model(models[0])
    assert not [name for name in state if "parametrizations" in name]
    merged, about = lora.load_merged(models[1], base)
    assert checkpoints.digest(merged.state_dict()) == description["certificate"]["weights"]
    assert about == description
    trained = checkpoints.read_state(models[1])[0]
    assert not [name for name in trained if name.endswith(".original")]
    assert models[1].stat().st_size < 0.6 * models[0].stat().st_size

    # Adapters draw nothing before the head.
    torch.manual_seed(42)
    plain, adapted = factory.new_model(solver.options), solver.build_model(42)
    assert torch.equal(plain.fc5w_fc.weight, adapted.fc5w_fc.weight)


def test_the_best_model_scores_what_the_predictions_say(settings):
    """Rebuilt from nothing but the checkpoint and its description, loaded strictly."""
    solver = run(settings("swin", "--epochs", 1))
    state = torch.load(next(solver.log.checkpoints.glob("best*.pkl")), weights_only=True)
    about = checkpoints.description_of(state)
    assert (
        about["resize"] == "72"
        and about["dataset"] == "koniq-10k"
        and about["higher_is_better"] is True
    )
    assert about["score_range"] == [10.0, score_of(11, 12)] and about["metrics"]["test"].keys() == {
        "srcc",
        "plcc",
    }
    model = HyperNet(
        SwinBackbone(about["backbone"], patch_size=about["patch_size"]), about["fusion"]
    )
    model.load_state_dict(state, strict=True)
    scores = solver.round.model.eval(), model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(scores[0](images)["scores"], scores[1](images)["scores"])


def test_the_same_command_twice_gives_the_same_figures(settings, tmp_path):
    first = run(settings("swin", "--no_cache"))
    again = run(settings("swin", "--workers", 2, "--cache_dir", tmp_path / "cache"))
    other = run(settings("swin", "--seed", 43, "--no_cache"))
    assert without_times(first) == without_times(again) != without_times(other)
    one, two = (s.log.path("_predictions.csv").read_text() for s in (first, again))
    assert one == two


def test_round_two_is_a_run_with_the_next_seed(settings):
    both = run(settings("resnet", "--train_test_num", 2, "--seed", 7, "--no_spaq"))
    second = run(settings("resnet", "--seed", 8, "--no_spaq"))
    figures = [r for r in records(both) if r["type"] == "epoch" and r["round"] == 2]
    alone = [r for r in records(second) if r["type"] == "epoch"]
    assert [r["test"] for r in figures] == [r["test"] for r in alone]
    assert (both.log.checkpoints / "round2" / "last.pt").exists()
    assert (
        both.log.path("_round2_predictions.csv").read_text()
        == second.log.path("_predictions.csv").read_text()
    )
    end = records(both)[-1]
    values = [r["test"]["srcc"] for r in end["rounds"]]
    assert end["medians"]["test"]["srcc"] == pytest.approx(np.median(values))
    assert "Median test of 2 rounds: SRCC" in both.log.path(".log").read_text()


def test_a_random_split_is_drawn_anew_in_every_round(settings, tmp_path, koniq):
    root = tmp_path / "koniq"
    root.mkdir()
    (root / "1024x768").mkdir()
    for path in koniq.rglob("*.jpg"):
        (root / "1024x768" / path.name).symlink_to(path)
    (root / "koniq10k_scores_and_distributions.csv").symlink_to(
        koniq / "koniq10k_scores_and_distributions.csv"
    )
    solver = run(
        settings(
            "resnet", "--train_test_num", 2, "--epochs", 1, "--dataset_path", root, "--no_spaq"
        )
    )
    files = (solver.log.path("_predictions.csv"), solver.log.path("_round2_predictions.csv"))
    one, two = ({row[1] for row in table(path)} for path in files)
    assert len(one) == len(two) == 4 and one != two


def test_early_stopping_and_step_schedule(settings):
    """A frozen model cannot improve: epoch 1 is best, and patience 2 ends the run after epoch 3."""
    solver = run(
        settings(
            "resnet", "--lr_scheduler", "step", "--lr", "1e-12", "--patience", 2, "--epochs", 9
        )
    )
    log = solver.log.path(".log").read_text()
    epochs = [r for r in records(solver) if r["type"] == "epoch"]
    assert records(solver)[-1]["status"] == "early_stopped" and len(epochs) <= 9
    assert "Early stopping triggered!" in log and "No improvement for 2 epochs" in log
    assert "Learning rates: HyperNet=frozen, Backbone=1.00e-12" in log
    assert [r["lr"]["head"] for r in epochs[:2]] == [pytest.approx(1e-11), None]
    best = records(solver)[-1]["rounds"][0]["best_epoch"]
    assert len(epochs) == best + 2


def test_constant_scores_are_undefined_never_best_and_never_a_crash(settings, monkeypatch):
    """A model whose output layer is all zero scores every image alike."""

    class Constant(HyperIQASolver):
        def build_model(self, seed):
            model = super().build_model(seed)
            for name in ("fc5w_fc", "fc5b_fc"):
                for parameter in getattr(model, name).parameters():
                    torch.nn.init.zeros_(parameter)
                    parameter.register_hook(torch.zeros_like)
            return model

    solver = Constant(settings("resnet", "--weight_decay", 0, "--no_spaq"))
    solver.run()
    epochs = [r for r in records(solver) if r["type"] == "epoch"]
    assert [r["test"]["srcc"] for r in epochs] == [None, None]
    log = solver.log.path(".log").read_text()
    assert "\tnan\tnan" in log and "New best" not in log and "No improvement for 2 epochs" in log
    assert [p.name for p in solver.log.checkpoints.glob("best*")] == [
        "best_model_srcc_nan_plcc_nan.pkl"
    ]
    assert (
        records(solver)[-1]["rounds"][0]["best_epoch"] == 2
    )  # the newest, as long as none was defined
    assert records(solver)[-1]["medians"] == {}


def test_a_badness_set_is_tested_on_spaq_with_its_sign_turned(settings, tmp_path, koniq):
    lines = ["image,mos,split"]
    for part, number in (("train", 12), ("test", 6)):
        for i in range(number):
            lines.append(f"{part}/{part}_{i}.jpg,{100 - score_of(i, number)},{part}")
    table_file = koniq / "badness.csv"
    table_file.write_text("\n".join(lines))
    flags = ("--dataset", "csv", "--dataset_path", table_file, "--lower_is_better", "--epochs", 1)
    solver = run(settings("swin", *flags))
    rows = [
        (float(m), float(s))
        for data, _, m, s in table(solver.log.path("_predictions.csv"))
        if data == "spaq"
    ]
    mos, scores = zip(*rows)
    epoch = next(r for r in records(solver) if r["type"] == "epoch")
    assert epoch["spaq"]["srcc"] == pytest.approx(-metrics.srcc(scores, mos))
    assert (
        checkpoints.description_of(torch.load(next(solver.log.checkpoints.glob("best*"))))[
            "higher_is_better"
        ]
        is False
    )


def test_selection_on_validation_images(settings):
    """The best epoch goes by the validation SRCC, and the test figures are that epoch's, better or not."""
    solver = run(
        settings("resnet", "--select_on", "val", "--val_fraction", 0.5, "--epochs", 4, "--no_spaq")
    )
    log = solver.log.path(".log").read_text()
    epochs = [r for r in records(solver) if r["type"] == "epoch"]
    assert (
        "Epoch\tTrain_Loss\tTrain_SRCC\tTrain_PLCC\tVal_SRCC\tVal_PLCC\tTest_SRCC\tTest_PLCC\n"
        in log
    )
    assert "koniq-10k: 6 train images, 6 val images, 6 test images" in log
    assert "The best epoch is chosen on validation images" in log
    by_val = [epoch["val"]["srcc"] if epoch["val"]["srcc"] is not None else -2 for epoch in epochs]
    chosen = records(solver)[-1]["rounds"][0]
    assert chosen["best_epoch"] == 1 + by_val.index(max(by_val))
    assert chosen["test"] == epochs[chosen["best_epoch"] - 1]["test"]
    assert len(table(solver.log.path("_predictions.csv"))) == 6  # the test images alone
    assert f"Best SRCC: {max(by_val):.4f}" in log


def test_tensorboard_holds_the_epochs_figures(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    solver = run(settings("resnet", "--tensorboard", "--no_spaq"))
    events = EventAccumulator(str(solver.log.path(".tensorboard"))).Reload()
    epochs = [r for r in records(solver) if r["type"] == "epoch"]
    for part, name in (("train", "loss"), ("test", "plcc"), ("lr", "head")):
        scalars = events.Scalars(f"round1/{part}/{name}")
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx(
            [e[part][name] for e in epochs], rel=1e-6
        )


def test_run_names(settings):
    stamp = r"_\d{8}_\d{6}$"
    default, fused = (
        "swin_tiny_patch4_window7_224",
        ("--use_multiscale", "--ranking_loss_alpha", 0.3),
    )
    for solver, flags, expected in (
        (HyperIQASolverSwin, ("--backbone", default), "swin_ranking_alpha0"),
        (HyperIQASolverSwin, ("--backbone", default, *fused), "swin_multiscale_ranking_alpha0.3"),
        (HyperIQASolverSwin, (), "swin_nano_ranking_alpha0"),
        (HyperIQASolver, (), "resnet18"),
        (HyperIQASolver, ("--ranking_loss_alpha", 0.3), "resnet18_ranking_alpha0.3"),
        (
            HyperIQASolver,
            ("--loss", "plcc", "--hyper", "transformer", "--fusion", "fpn"),
            "resnet18_fpn_transformer_plcc",
        ),
    ):
        options = settings("swin" if solver is HyperIQASolverSwin else "resnet", *flags)
        assert re.fullmatch(expected + stamp, solver(options).run_name())


def test_failures_leave_an_end_record(settings, tmp_path, koniq):
    from helpers import write_koniq

    root = write_koniq(tmp_path / "broken", 4, 2)
    (root / "train" / "train_1.jpg").write_bytes(b"no image")
    solver = HyperIQASolver(settings("resnet", "--dataset_path", root, "--no_spaq"))
    with pytest.raises(
        UserError, match="1 of 6 images cannot be read: .*train_1.jpg: not an image"
    ):
        solver.run()
    assert records(solver)[-1]["status"] == "failed"
    assert "error: 1 of 6 images cannot be read" in solver.log.path(".log").read_text()


def test_spaq_places(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("hyperiqa.base.files.HERE", tmp_path)
    options = settings("resnet", "--epochs", 1)
    options.cross_test = None
    solver = run(options)
    assert "SPAQ cross test: skipped" in solver.log.path(".log").read_text()
    assert "spaq" not in records(solver)[1]
    with pytest.raises(UserError, match="spaq: no folder .*nowhere; expected spaq_test.json"):
        run(settings("resnet", "--spaq_path", tmp_path / "nowhere"))


def test_the_log_begins_with_what_differs_and_ends_with_what_to_do_next(
    settings, koniq, tmp_path, run_main
):
    options = settings("resnet", "--no_spaq", "--log_dir", tmp_path / "my logs")
    options.recipes = ["recipes/mine.txt"]
    solver = run(options)
    first, *_, last = solver.log.path(".log").read_text().split("Epoch\t")
    lines = dict(line.split(": ", 1) for line in first.splitlines() if ": " in line)
    record = records(solver)[0]
    assert lines["Started"] == record["started"]
    assert f"torch {record['versions']['torch']}" in lines["Versions"].split(", ")
    assert "\nFlags from recipes/mine.txt\n" in first
    said = dict(pair.split("=", 1) for pair in lines["Settings"].replace("my logs", "").split())
    assert (said["lr"], said["seed"], said["dataset"]) == ("0.001", "42", "koniq-10k")
    assert not {"weight_decay", "optimizer", "recipes"} & said.keys()
    # What the log leaves out is known to be the default where nothing but the log is left.
    (plain,) = reading.read_runs(Path(shutil.copy(solver.log.path(".log"), tmp_path)))
    (whole,) = reading.read_runs(solver.log.path(".jsonl"))
    for name in whole.settings.keys() - {"code", "images"}:
        assert plain.settings[name] == whole.settings[name], name
    assert last.count("Learning rates: ") == 1
    took, best, place, _, *commands = last[last.index("Training and testing took ") :].splitlines()
    assert Path(best.removeprefix("Best model: ")).is_file()
    assert Path(place.removeprefix("Log: ")) == solver.log.path(".log")
    mains = {
        "predict.py": predict.main,
        "report.py": report.main,
        "compare_logs.py": compare_logs.main,
    }
    for command in commands:
        _, script, *words = shlex.split(command)
        words = [koniq / "test" if word == "photos" else word for word in words]
        if script.endswith("report.py"):
            words += ["--no_cache", "--output", tmp_path / "report.html"]
        run_main(script, mains.pop(Path(script).name), *words)
    assert not mains


def test_devices():
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match=r"--device cuda:99: this machine has \d+ CUDA devices"):
        choose_device("cuda:99")


def test_median_of_undefined_rounds_is_left_out():
    rounds = [{"test": {"srcc": math.nan, "plcc": 0.5}}, {"test": {"srcc": 0.2, "plcc": 0.7}}]
    assert metrics.medians(rounds) == {"test": {"srcc": 0.2, "plcc": pytest.approx(0.6)}}


def test_several_cross_tests_each_have_their_columns_records_and_predictions(
    settings, tmp_path, koniq, spaq
):
    """A CSV of badness among them: its sign is turned. The figures of a set do not depend on the others."""
    lines = [f"train/train_{i}.jpg,{100 - score_of(i, 12)}" for i in range(12)]
    (koniq / "other.csv").write_text("\n".join(["image,mos", *lines]))
    both = run(
        settings(
            "resnet",
            "--allow_overlap",
            "--cross_test",
            f"spaq={spaq}",
            f"csv={koniq / 'other.csv'}",
        )
    )
    alone = run(settings("resnet"))
    log = both.log.path(".log").read_text()
    assert (
        "\tSPAQ_SRCC\tSPAQ_PLCC\tCSV_SRCC\tCSV_PLCC\n" in log
        and "\nCSV cross test: 12 images\n" in log
    )
    first, *epochs, last = records(both)
    assert first["data"] == {"train": 12, "test": 6, "spaq": 5, "csv": 12}
    assert set(first["fingerprint"]) == {"koniq-10k", "spaq", "csv"}
    assert [e["spaq"] for e in epochs] == [
        e["spaq"] for e in records(alone) if e["type"] == "epoch"
    ]
    assert list(last["medians"]) == ["test", "spaq", "csv"] and set(epochs[0]["seconds"]) == {
        "train",
        "test",
        "spaq",
        "csv",
    }
    best = epochs[last["rounds"][0]["best_epoch"] - 1]
    mos, scores = zip(
        *[
            (float(m), float(s))
            for d, _, m, s in table(both.log.path("_predictions.csv"))
            if d == "csv"
        ]
    )
    assert best["csv"]["srcc"] == pytest.approx(metrics.srcc(scores, mos), abs=1e-9)


def test_a_new_loss_part_and_figure_appear_everywhere(settings, monkeypatch):
    """Row, record, medians and TensorBoard follow the criterion's parts and the dictionary of figures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from hyperiqa.training import log as run_log

    monkeypatch.setitem(metrics.FIGURES, "krcc", metrics.Figure(metrics.krcc, recorded=True))
    for module in (metrics, run_log):
        monkeypatch.setattr(module, "RECORDED", ("srcc", "plcc", "krcc"))
    solver = HyperIQASolver(settings("resnet", "--no_spaq", "--tensorboard"))
    plain = solver.criterion
    solver.criterion = lambda outputs, batch: {
        **plain(outputs, batch),
        "mse": outputs["scores"].var() + 1,
    }
    solver.run()
    log = solver.log.path(".log").read_text()
    assert "Train_SRCC\tTrain_PLCC\tTrain_KRCC\tTest_SRCC\tTest_PLCC\tTest_KRCC\n" in log
    assert re.search(r"^1\t\d+\.\d{3} \(L1:\d+\.\d{3},Mse:\d+\.\d{3}\)\t", log, re.M)
    epochs = [r for r in records(solver) if r["type"] == "epoch"]
    assert (
        set(epochs[0]["train"]) == {"loss", "l1", "mse", "srcc", "plcc", "krcc"}
        and "krcc" in epochs[0]["test"]
    )
    assert "krcc" in records(solver)[-1]["medians"]["test"] and re.search(
        r", KRCC -?[01]\.\d{4}$", log, re.M
    )
    events = EventAccumulator(str(solver.log.path(".tensorboard"))).Reload()
    assert [s.value for s in events.Scalars("round1/train/mse")] == pytest.approx(
        [e["train"]["mse"] for e in epochs]
    )


def test_the_description_keeps_every_choice_and_the_backbones_own_normalisation(settings):
    class OwnPixels(HyperIQASolver):
        def build_model(self, seed):
            model = super().build_model(seed)
            model.backbone.set_normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
            return model

    solver = OwnPixels(settings("resnet", "--no_spaq", "--epochs", 1, "--weight_decay", 0.25))
    solver.run()
    about = checkpoints.description_of(
        torch.load(next(solver.log.checkpoints.glob("best*")), weights_only=True)
    )
    assert (about["mean"], about["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (
        about["weight_decay"] == 0.25
        and about["lr_scheduler"] == "cosine"
        and about["versions"]["hyperiqa"]
    )
    scores = [float(row[3]) for row in table(solver.log.path("_predictions.csv"))]
    model = quality_model.load(solver.log.checkpoints)
    images = [record.path for record in solver.data.main.split("test")]
    assert [model.score(image) for image in images] == pytest.approx(scores, abs=1e-4)


def test_what_every_epoch_scored_and_what_the_choice_costs(settings):
    solver = run(settings("resnet", "--epochs", 3, "--train_test_num", 2))
    for number, ending in ((1, "_epochs.npz"), (2, "_round2_epochs.npz")):
        with np.load(solver.log.path(ending)) as arrays:
            found = dict(arrays)
        assert set(found) == {
            f"{part}_{what}"
            for part in ("test", "spaq")
            for what in ("images", "mos", "error", "scores")
        }
        assert found["test_scores"].shape == (3, 6) and found["spaq_scores"].shape == (3, 5)
        epochs = [r for r in records(solver) if r["type"] == "epoch" and r["round"] == number]
        for scores, epoch in zip(found["test_scores"], epochs):
            assert metrics.srcc(scores, found["test_mos"]) == pytest.approx(
                epoch["test"]["srcc"], abs=1e-6
            )
        assert np.isnan(found["test_error"]).all() and len({*found["test_images"]}) == 6
    assert all("selection_price" in each for each in records(solver)[-1]["rounds"])


def test_the_price_of_choosing_on_the_test_set_is_said_of_that_choice_alone(settings, tmp_path):
    from helpers import write_koniq

    koniq = write_koniq(tmp_path / "koniq", test=10)
    on_test = run(settings("resnet", "--dataset_path", koniq, "--epochs", 3, "--run_name", "a"))
    on_val = run(
        settings(
            "resnet",
            "--dataset_path",
            koniq,
            "--epochs",
            3,
            "--run_name",
            "b",
            "--select_on",
            "val",
            "--val_fraction",
            0.3,
        )
    )
    with np.load(on_test.log.path("_epochs.npz")) as arrays:
        price = intervals.selection_bias([(arrays["test_scores"], arrays["test_mos"])])
    assert records(on_test)[-1]["rounds"][0]["selection_price"] == pytest.approx(price)
    said = f"Choosing the epoch on the test set inflates the SRCC by about {price:.3f}\n"
    assert said in on_test.log.path(".log").read_text()
    assert records(on_val)[-1]["rounds"][0]["selection_price"] is None
    assert "inflates" not in on_val.log.path(".log").read_text()
