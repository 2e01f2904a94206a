"""One training run, readable top to bottom: build, epochs, schedule, early stopping, best model, records."""

import argparse
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperiqa.base.device import (
    choose_hardware,
    keep_freed_memory,
    map_large_tensors_separately,
    set_backends,
)
from hyperiqa.base.errors import Interrupted, UserError
from hyperiqa.base.signals import StopSignals
from hyperiqa.base.version import versions
from hyperiqa.model import checkpoints
from hyperiqa.model.factory import new_model
from hyperiqa.model.hypernet import HyperNet
from hyperiqa.stats import metrics
from hyperiqa.training import certificate, engine, processes, whole_batch
from hyperiqa.training.batches import SCORE_BATCH
from hyperiqa.training.loaders import fewer_workers, make_loader
from hyperiqa.training.log import epoch_columns, epoch_row, figures_text, log_start, median_lines
from hyperiqa.training.losses import make_criterion
from hyperiqa.training.optimizers import TrainedModel
from hyperiqa.training.options import default_run_name
from hyperiqa.training.run_files import Prediction
from hyperiqa.training.schedules import Rates, make_schedule
from hyperiqa.training.sets import RunData
from hyperiqa.training.starts import StartingModel
from hyperiqa.training.state import RunState, open_run, settings_of

Figures = dict[str, float]


class HyperIQASolver:
    """A run of `--train_test_num` rounds. `options` are the settings that `options.train_options` returns."""

    default_backbone, default_name = (
        "resnet50",
        "resnet50",
    )  # what a run's name calls it; others by their own name
    always_names_alpha = False

    def __init__(self, options: argparse.Namespace):
        o = self.options = options
        self.begun, self.costs = time.perf_counter(), list[dict[str, float]]()
        self.initial_start = StartingModel.of(o) if o.init else None
        self.teacher_start = StartingModel.teacher_of(o) if o.teacher else None
        self.hardware, self.reason = choose_hardware(
            processes.device_of_process(o.device), o.precision, o.workers
        )
        set_backends(o.deterministic)
        map_large_tensors_separately()
        self.criterion, self.schedule = make_criterion(o), make_schedule(o)
        self.signals = StopSignals(several=processes.world_size() > 1)

    def run(self) -> None:
        """Train and test; every exit but a kill leaves an `end` record that says how it came."""
        o = self.options
        with self.signals, self.opened() as state:
            for number in range(state.round, o.train_test_num + 1):
                self.begin_round(number)
                for epoch in state.epochs_left(o.epochs):
                    if self.stops_early():
                        break
                    self.begin_epoch(epoch)
                    result: dict[str, Figures] = {"train": self.train()}
                    seconds = {"train": state.progress.seconds}
                    self.predictions: list[Prediction] = []
                    self.agreed: dict[str, tuple[np.ndarray, np.ndarray]] = {}
                    for part in self.data.tests:
                        start = time.perf_counter()
                        result[part] = self.test(part)
                        seconds[part] = time.perf_counter() - start
                    result = self.data.with_means(result)
                    self.log_epoch(result, seconds)
                    self.keep_if_best(result)
                    state.progress = None
                    self.save()
                self.end_round()
            for line in median_lines(state.rounds):
                self.log.line(line)

    def build_model(self, seed: int) -> HyperNet:
        """A new model with weights from `seed`, and pretrained or given ones for the backbone; or that of `--init`."""
        o = self.options
        torch.manual_seed(seed)
        model = (
            self.initial_start.model(self.data.common, o) if self.initial_start else new_model(o)
        )
        if o.fused_attention:
            model.backbone.fuse_attention()
        if o.freeze_backbone:
            model.backbone.freeze()
        # Patches arrive channels last; weights in that layout too save the convolutions a copy.
        return model.to(self.hardware.device).to(memory_format=torch.channels_last)

    def run_name(self) -> str:
        return default_run_name(
            self.options, self.default_backbone, self.default_name, self.always_names_alpha
        )

    @contextmanager
    def opened(self) -> Iterator[RunState]:
        """The run's data, log and state, new or taken up; however the run ends, its records say so."""
        o = self.options
        self.data = RunData(o, o.seed)
        # Before what takes long and leaves files: the flags may still name a model that there is not.
        with processes.node_leader_first():  # which downloads
            self.model = self.build_model(o.seed)
        self.teacher: Any = (
            self.teacher_start
            and self.teacher_start.model(self.data.common, o).to(self.hardware.device).eval()
        )
        settings = settings_of({**vars(o), "fingerprint": self.data.fingerprint})
        self.log, self.saved = open_run(o, self.run_name(), settings)
        self.state, self.status = RunState(settings), "failed"
        try:
            with processes.shared_failures():
                processes.check_same_in_all("settings or data", settings)
                if self.saved:
                    self.state = RunState.restored(self.saved, settings, self.hardware.device)
                else:
                    log_start(
                        self.log,
                        o,
                        self.hardware,
                        self.reason,
                        self.data,
                        self.criterion,
                        self.schedule,
                    )
                    for model, how in (
                        (self.initial_start, "Starting from"),
                        (self.teacher_start, "Learning from"),
                    ):
                        self.log.line(model.explained(self.data.common, how)) if model else None
                if o.tensorboard:
                    self.log.open_board(first_epoch=self.state.epochs_left(o.epochs).start)
                with processes.node_leader_first():
                    self.data.decode(self.hardware.device, self.log, new=self.saved is None)
                if fewer := fewer_workers(
                    self.hardware, max(o.batch_size, SCORE_BATCH), o.patch_size
                ):
                    self.log.line(fewer)
                yield self.state
        except Interrupted:
            self.status = "interrupted"
            self.log.line("Interrupted")
            command = re.sub(r" --resume[ =]\S+", "", shlex.join(sys.argv))
            self.log.show(f"Go on with: {processes.launch_command()} {command} --resume auto")
            raise
        except UserError as mistake:
            self.log.keep(f"error: {mistake}")
            raise
        finally:
            rounds = self.state.rounds
            self.log.record(
                type="end", status=self.status, rounds=rounds, medians=metrics.medians(rounds)
            )
            self.log.close()

    def begin_round(self, number: int) -> None:
        """Build the round's model, or put it back to where it was saved."""
        o, state = self.options, self.state
        state.next_round(number)
        self.seed, self.status = o.seed + number - 1, "failed"
        self.certified: dict[str, Any] | None = None
        if number > 1:
            self.data.draw_again(self.seed)
            self.model = self.build_model(self.seed)
        self.compiled: Any = (
            torch.compile(self.model) if o.compile else self.model
        )  # to train; shares the parameters
        self.trained = TrainedModel(self.model, o)
        if not (new := self.saved is None):
            self.trained.restore(self.saved, self.rates(state.epoch))
            self.saved = None
            if state.best:
                self.log.predictions(number, state.best["predictions"])
            self.log.epochs(number, self.data.tested(state.scores))
        elif o.train_test_num > 1:
            self.log.line(f"Round {number} of {o.train_test_num}, seed {self.seed}")
        compute = partial(engine.stage_maps, self.model, self.hardware.fp32)
        with processes.node_leader_first():
            self.data.prepare_features(
                self.model, self.seed, compute, self.log.line if new else self.log.show
            )
        if new:
            self.log.line(epoch_columns(["train", *self.data.parts]))
        self.saved_at, self.signals.deferred = time.monotonic(), True

    def stops_early(self) -> bool:
        return self.options.early_stopping and self.state.without_gain >= self.options.patience

    def begin_epoch(self, epoch: int) -> None:
        if self.state.progress is None:
            self.state.epoch, self.state.progress = epoch, engine.EpochProgress()
            self.trained.begin_epoch(self.rates(epoch), self.schedule.makes_new(epoch))

    def rates(self, epoch: int, done: float = 0.0) -> Rates:
        return self.schedule.rates(epoch, done, self.state.history)

    def train(self) -> Figures:
        """Train the epoch, or the rest of it."""
        o, epoch, progress = self.options, self.state.epoch, self.state.progress
        batches = self.data.train_batches(self.seed, epoch, o.batch_size, processes.share())
        whole_batch.prepare(self.model)
        loader = make_loader(batches, self.hardware, progress.step)
        if self.teacher is not None:
            loader = engine.with_teacher_scores(loader, self.teacher, self.hardware)
        ready, before = time.perf_counter(), progress.step
        started = ready - progress.seconds
        with engine.progress_bar(
            f"Epoch {epoch}/{o.epochs}", len(batches.patches), progress.step * o.batch_size
        ) as bar:

            def after_step() -> None:
                keep_freed_memory()  # from the first step on, which made what the optimizer keeps
                bar.update(len(progress.scores[-1]))
                bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
                self.trained.after_step(self.rates(epoch, progress.step / len(batches)))
                progress.seconds = time.perf_counter() - started
                if time.monotonic() - self.saved_at >= 60 * o.checkpoint_minutes:
                    self.save()
                self.stop_if_asked()

            try:
                result = engine.train_one_epoch(
                    self.compiled,
                    self.criterion,
                    self.trained.optimizer,
                    loader,
                    self.hardware,
                    progress,
                    after_step,
                )
            except engine.NonFiniteLoss as problem:
                names = self.data.names_of(batches, problem.step)
                raise UserError(
                    f"{problem.explained(epoch, self.folder / 'last.pt')}{names}"
                ) from None
        progress.seconds = time.perf_counter() - started
        if processes.world_size() > 1 and not self.costs:
            self.costs = processes.process_costs(
                ready - self.begun, ready, progress.step - before, self.hardware.device
            )
            self.log.record(type="processes", processes=self.costs)
            self.log.line("\n".join(processes.cost_lines(self.costs)))
        return result

    def test(self, part: str) -> Figures:
        """Score a set; the scores of all sets but validation's make the epoch's predictions."""
        o, (images, split) = self.options, self.data.tests[part]
        data, records, crops = images.data, images.records(split), (o.test_crop, o.test_patch_num)
        scores = engine.score_set(
            self.trained.tested, images, records, crops, self.hardware.fp32, self.stop_if_asked
        )
        scores, agreeing = self.data.oriented_scores(data, scores)
        self.agreed[part] = agreeing, (mos := np.array([r.score for r in records]))
        if split != "val":
            rows = zip(records, scores.tolist(), strict=True)
            self.predictions += [(data.name, r.name, r.score, score) for r, score in rows]
        return metrics.recorded(agreeing, mos)

    def stop_if_asked(self) -> None:
        if signum := processes.largest_of_all(self.signals.received or 0):
            self.save()
            processes.largest_of_all(0)  # a launcher ends the others once one has left
            raise Interrupted(signum)

    def log_epoch(self, result: dict[str, Figures], seconds: Figures) -> None:
        epoch, lr = self.state.epoch, vars(self.rates(self.state.epoch))
        self.state.history.append(result[self.data.chosen]["srcc"])
        for part, (scores, _) in self.agreed.items():
            self.state.scores.setdefault(part, []).append(torch.from_numpy(scores).float())
        self.log.epochs(self.state.round, self.data.tested(self.state.scores))
        self.log.line(epoch_row(epoch, result, ["train", *self.data.parts]))
        self.log.record(
            type="epoch", round=self.state.round, epoch=epoch, **result, lr=lr, seconds=seconds
        )
        self.log.line(f"Learning rates: {self.rates(epoch + 1)}")

    def end_round(self) -> None:
        state, log, data = self.state, self.log, self.data
        self.signals.deferred = False
        self.status = "early_stopped" if self.stops_early() else "finished"
        if self.stops_early():
            log.line("Early stopping triggered!")
        if log.writes:
            state.clear_models(self.folder, keep=1)
        epoch, best = state.best["epoch"], {part: state.best["result"][part] for part in data.parts}
        log.line(f"{figures_text(best[data.chosen], before='Best ')} (epoch {epoch})")
        price = data.selection_bias(state.scores)
        if not math.isnan(price):
            log.line(f"Chosen on the test set, which flatters the SRCC by about {price:+.4f}")
        round_ = {
            "round": state.round,
            "seed": self.seed,
            "best_epoch": epoch,
            "selection_price": price,
        }
        state.rounds.append({**round_, **best})

    @property
    def folder(self) -> Path:
        """Where the round's models go."""
        return (
            self.log.checkpoints
            if self.state.round == 1
            else self.log.checkpoints / f"round{self.state.round}"
        )

    def keep_if_best(self, result: dict[str, Figures]) -> None:
        """Keep the epoch's model and predictions where its SRCC is the best so far."""
        state, log, first = self.state, self.log, self.data.chosen
        if (better := state.is_better(first, result[first]["srcc"])) is not False:
            file = "best_model_srcc_{srcc:.4f}_plcc_{plcc:.4f}.pkl".format(**result[first])
            if log.writes:
                best = checkpoints.portable_state(self.trained.tested)
                checkpoints.describe(best, self.description(result, checkpoints.digest(best)))
                checkpoints.save(self.folder / file, best)
            log.predictions(state.round, self.predictions)
            state.keep(result, file, self.predictions)
        state.without_gain = 0 if better else state.without_gain + 1
        epochs = f"{state.without_gain} epoch{'s' if state.without_gain > 1 else ''}"
        log.line(
            f"New best model saved! {figures_text(result[first])}"
            if better
            else f"No improvement for {epochs}"
        )

    def description(self, result: dict[str, Figures], weights: str) -> dict[str, Any]:
        """What is needed to use the model without repeating a flag, every choice that made it, and its certificate.
        weights: their digest."""
        choices = {
            name: value for name, value in self.state.settings.items() if name != "fingerprint"
        }
        model = {**self.data.description, **self.model.backbone.described}
        figures = {part: result[part] for part in self.data.parts}
        if self.certified is None:
            starts = {"init": self.initial_start, "teacher": self.teacher_start}
            self.certified = certificate.describe_round(
                self.options, self.hardware, certificate.describe_sets(self.data), starts
            )
        rows, bounds = (
            certificate.predictions_digest(self.predictions),
            certificate.figures_with_intervals(self.agreed),
        )
        place = {"round": self.state.round, "epoch": self.state.epoch}
        of_run = {**place, "weights": weights, "predictions": rows, "figures": bounds}
        about = {
            "metrics": figures,
            "run": self.log.name,
            "versions": versions(),
            "certificate": self.certified,
        }
        return certificate.sealed({**choices, "seed": self.seed, **model, **about}, of_run)

    def save(self) -> None:
        """Everything that the rest of the run depends on, as of now."""
        if self.log.writes:
            self.state.save(self.folder, self.trained.state(), self.log)
        self.saved_at = time.monotonic()
