"""Runs of `train_timm.py`: frozen encoders, stored features, starts from trained models."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers import write_images

import evaluate
from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, factory
from hyperiqa.scoring import quality_model
from hyperiqa.training import engine
from hyperiqa.training.epoch_batches import train_batches
from HyperIQASolver import HyperIQASolver

FROZEN = ("--freeze_backbone", "--fixed_crops")


def run(options):
    solver = HyperIQASolver(options)
    solver.run()
    return solver


def epochs(solver):
    rows = [json.loads(line) for line in solver.log.path(".jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in rows if row["type"] == "epoch"
    ]


def predictions(solver):
    rows = [
        line.split(",") for line in solver.log.path("_predictions.csv").read_text().splitlines()[1:]
    ]
    return np.array([float(row[3]) for row in rows])


def write_csv(path, number=8, low=1.0, high=5.0):
    names = [f"own_{i}.png" for i in range(number)]
    write_images(path.parent, names, (96, 80), seed=3)
    with path.open("w", newline="") as file:
        rows = [
            [n, low + (high - low) * i / (number - 1), "train" if i % 4 else "test"]
            for i, n in enumerate(names)
        ]
        rows[0][2] = rows[-1][2] = "train"  # smallest and largest
        csv.writer(file).writerows([["image", "mos", "split"], *rows])
    return path


@pytest.fixture
def trained(settings):
    return run(settings("timm", "--backbone", "test_vit", "--epochs", 1, "--run_name", "trained"))


def test_stored_features_train_and_test_as_the_pixels_do(settings):
    """With the same fixed crops: in fp32 whole runs to rounding, in 16 bit a model's scores to a thousandth of the range
    (whole runs drift apart, as they do after any rounding)."""
    found = {
        dtype: run(
            settings(
                "timm", *FROZEN, "--feature_dtype", dtype, "--run_name", dtype, "--fusion", "concat"
            )
        )
        for dtype in ("none", "fp32", "fp16")
    }
    pixels = predictions(found["none"])
    assert np.ptp(pixels) > 1  # scores that differ, so that agreement says something
    assert np.allclose(predictions(found["fp32"]), pixels, rtol=1e-5)
    half = found["fp16"]
    model = quality_model.load(half.log.checkpoints)
    own = [model.score(record.path) for record in half.data.main.split("test")]
    assert np.abs(predictions(half)[:6] - own).max() < 1e-3 * 100
    for part in ("train", "test", "spaq"):
        for ours, theirs in zip(epochs(found["fp32"]), epochs(found["none"]), strict=True):
            assert ours[part] == pytest.approx(theirs[part], rel=1e-4, abs=1e-6)
    log = half.log.path(".log").read_text()
    assert "Features of train: 24 patches of " in log and "Features of spaq: 5 patches of " in log
    assert "Features of" not in found["none"].log.path(".log").read_text()


def test_features_are_shared_by_runs_and_never_mistaken(settings):
    first = run(settings("timm", *FROZEN, "--run_name", "first"))
    again = run(
        settings("timm", *FROZEN, "--run_name", "again", "--lr", 1e-2)
    )  # other head, same encoder
    assert (
        "found in" in again.log.path(".log").read_text()
        and "to compute in" in first.log.path(".log").read_text()
    )
    # Another encoder (its weights are drawn from the seed), other crops, another patch: nothing is found.
    for name, flags in (
        ("seed", ("--seed", 7)),
        ("patch", ("--patch_size", 48)),
        ("none", ("--augment", "none")),
    ):
        other = (
            run(settings("timm", *FROZEN, "--run_name", name, *flags)).log.path(".log").read_text()
        )
        assert "to compute in" in next(
            line for line in other.splitlines() if line.startswith("Features of train")
        )


def test_a_frozen_run_is_an_ordinary_checkpoint(settings, koniq, run_main):
    solver = run(settings("timm", *FROZEN, "--epochs", 1, "--run_name", "frozen"))
    torch.manual_seed(42)
    fresh = solver.build_model(42).backbone.encoder_state()
    model = quality_model.load(solver.log.checkpoints)
    # The encoder in the checkpoint is the one that the run began with.
    assert all(
        torch.equal(tensor, fresh[name])
        for name, tensor in model.net.backbone.encoder_state().items()
    )
    scores = [model.score(record.path) for record in solver.data.main.split("test")]
    assert np.allclose(
        scores, predictions(solver)[:6], atol=1e-2
    )  # which were scored from features in 16 bit
    words = (solver.log.checkpoints, "--datasets", f"koniq-10k={koniq}", "--no_cache")
    said = run_main("evaluate.py", evaluate.main, *words)
    assert "koniq-10k" in said.stdout
    said = run_main("predict.py", __main__.main, solver.log.checkpoints, koniq / "test")
    assert said.stdout.count("test_") == 6


def test_init_goes_on_from_a_whole_model_on_another_scale(settings, trained, tmp_path):
    table = write_csv(tmp_path / "own" / "own.csv")
    flags = (
        "--dataset",
        "csv",
        "--dataset_path",
        table,
        "--init",
        trained.log.checkpoints,
        "--no_spaq",
    )
    solver = HyperIQASolver(settings("timm", *flags, "--run_name", "tuned"))
    assert (solver.options.backbone, solver.options.patch_size, solver.options.fusion) == (
        "test_vit",
        64,
        "none",
    )
    assert solver.options.hyper == "conv"
    with solver.opened():
        solver.begin_round(1)
    old = quality_model.load(trained.log.checkpoints)
    for record in solver.data.main.split("test"):
        patches = torch.from_numpy(old.patches(record.path))
        with torch.no_grad():
            new = solver.round.model.eval()(solver.round.model.backbone.normalised(patches))[
                "scores"
            ].item()
        # KonIQ's 0..100 to the training images' 1..5, before the first step.
        assert new == pytest.approx(1 + 0.04 * old.score(record.path), abs=1e-4)
    log = solver.log.path(".log").read_text()
    digest = checkpoints.digest(
        checkpoints.load_model(checkpoints.find_model(trained.log.checkpoints))[0]
    )
    assert f"(weights {digest}): scores become 0.04 * score +1, from koniq-10k to csv" in log
    assert solver.state.settings["init_digest"] == digest and "init" not in solver.state.settings


def test_init_of_the_same_set_changes_no_score_and_of_badness_turns_them(
    settings, trained, tmp_path
):
    same = run(
        settings("timm", "--init", trained.log.checkpoints, "--epochs", 1, "--run_name", "same")
    )
    assert "scores stay as they are" in same.log.path(".log").read_text()
    table = write_csv(tmp_path / "own" / "own.csv", low=0, high=50)
    flags = (
        "--dataset",
        "csv",
        "--dataset_path",
        table,
        *"--lower_is_better --no_spaq --epochs 1".split(),
    )
    turned = run(
        settings("timm", *flags, "--init", trained.log.checkpoints, "--run_name", "turned")
    )
    assert (
        "scores become -0.5 * score +50, from koniq-10k to csv"
        in turned.log.path(".log").read_text()
    )
    again = quality_model.load(turned.log.checkpoints)
    assert (
        again.description["nominal_range"] == [0, 50]
        and again.description["higher_is_better"] is False
    )


def test_init_refuses_flags_that_say_otherwise(settings, trained):
    with pytest.raises(
        UserError, match="--backbone test_convnext: the model of --init .* has test_vit"
    ):
        HyperIQASolver(
            settings("timm", "--init", trained.log.checkpoints, "--backbone", "test_convnext")
        )
    with pytest.raises(UserError, match="--fusion concat: the model of --init .* has none"):
        HyperIQASolver(settings("timm", "--init", trained.log.checkpoints, "--fusion", "concat"))


def test_init_of_a_model_that_says_nothing_of_its_hyper_network(settings, trained, tmp_path):
    state, description = checkpoints.load_model(checkpoints.find_model(trained.log.checkpoints))
    older = {
        name: value
        for name, value in description.items()
        if name not in ("hyper", "dropout", "drop_path")
    }
    net = factory.build(older)
    net.load_state_dict(state)
    checkpoints.save(tmp_path / "older.pkl", checkpoints.portable_state(net, older))
    solver = HyperIQASolver(settings("timm", "--init", tmp_path / "older.pkl", "--dropout", 0.2))
    assert solver.options.hyper == "conv"
    with solver.opened():
        solver.begin_round(1)
        assert solver.round.model.dropout.p == 0.2


def test_a_teachers_scores_are_learnt_on_the_scale_of_the_set(settings, trained, tmp_path):
    """From KonIQ's 0..100 to 1..5: the student's first batch is compared with what the teacher says of its patches."""
    table = write_csv(tmp_path / "own" / "own.csv")
    flags = (
        "--dataset",
        "csv",
        "--dataset_path",
        table,
        "--no_spaq",
        "--teacher",
        trained.log.checkpoints,
    )
    solver = run(
        settings(
            "timm", *flags, "--backbone", "test_convnext", "--distill_weight", 0.5, "--epochs", 1
        )
    )
    teacher = quality_model.load(trained.log.checkpoints)
    batch = train_batches(solver.data, 42, 1, 8)[0]
    batch["patches"] = torch.where(
        batch.pop("hflip")[:, None, None, None], batch["patches"].flip(2), batch["patches"]
    )
    found = next(iter(engine.with_teacher_scores([batch], solver.teacher, solver.hardware)))[
        "teacher"
    ]
    with torch.no_grad():
        expected = (
            1 + 0.04 * teacher.net(teacher.net.backbone.normalised(batch["patches"]))["scores"]
        )
    assert torch.allclose(found, expected, atol=1e-4)
    row = epochs(solver)[0]["train"]
    assert row["loss"] == pytest.approx(row["l1"] + 0.5 * row["distill"], rel=1e-5)
    log, digest = solver.log.path(".log").read_text(), checkpoints.digest(teacher.net.state_dict())
    assert (
        f"Learning from {checkpoints.find_model(trained.log.checkpoints)} (weights {digest})" in log
    )
    assert (
        solver.state.settings["teacher_digest"] == digest and "teacher" not in solver.state.settings
    )
    student = quality_model.load(solver.log.checkpoints)
    assert (
        student.description["teacher_digest"] == digest
        and student.description["backbone"] == "test_convnext"
    )


def test_a_teacher_whose_scores_are_on_no_scale_is_refused(settings, trained, tmp_path):
    state, description = checkpoints.load_model(checkpoints.find_model(trained.log.checkpoints))
    net = factory.build(description)
    checkpoints.save(
        tmp_path / "plcc.pkl", checkpoints.portable_state(net, {**description, "loss": "plcc"})
    )
    with pytest.raises(UserError, match="trained with --loss plcc, so its scores are on no scale"):
        HyperIQASolver(settings("timm", "--teacher", tmp_path / "plcc.pkl"))


@pytest.mark.parametrize(
    "flags", [FROZEN, ("--init", "trained"), ("--freeze_backbone", "--train_test_num", 2)]
)
def test_a_run_that_was_stopped_goes_on_to_the_bit(settings, trained, flags):
    flags = tuple(trained.log.checkpoints if word == "trained" else word for word in flags)

    class Stops(HyperIQASolver):
        def stop_if_asked(self):
            if self.state.epoch == 2 and self.state.progress.step == 2:
                raise UserError("stopped")

    more = (*flags, "--checkpoint_minutes", 0)
    whole = run(settings("timm", *more, "--run_name", "whole"))
    with pytest.raises(UserError, match="stopped"):
        Stops(settings("timm", *more, "--run_name", "stopped")).run()
    again = run(settings("timm", *more, "--run_name", "stopped", "--resume", "auto"))
    assert epochs(again) == epochs(whole)
    assert predictions(again).tolist() == predictions(whole).tolist()


def test_run_names_hold_what_file_names_take(settings):
    options = settings("timm", "--backbone", "hf-hub:timm/test_vit.r160_in1k@main")
    assert HyperIQASolver(options).run_name().startswith("hf-hub-timm-test_vit.r160_in1k-main_2")


def test_a_model_that_there_is_not_is_said_before_anything_is_decoded_or_left(settings, tmp_path):
    with pytest.raises(UserError, match="--backbone convnext_nope: timm .* has no such model"):
        run(settings("timm", "--backbone", "convnext_nope", "--run_name", "mine"))
    assert not [
        path for name in ("logs", "checkpoints", "cache") for path in (tmp_path / name).glob("*")
    ]
