"""One training run, readable top to bottom: build, epochs, early stopping, best model, records."""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from hyperiqa.base import device, signals
from hyperiqa.base.errors import Interrupted, UserError, counted
from hyperiqa.model import factory, hypernet, lora
from hyperiqa.stats import metrics
from hyperiqa.training import (
    best_model,
    certificate,
    engine,
    epoch_batches,
    log,
    losses,
    optimizers,
    precision,
    processes,
    read_sets,
    schedules,
    whole_batch,
)
from hyperiqa.training.batches import SCORE_BATCH, fewer_workers, make_loader
from hyperiqa.training.options import default_run_name
from hyperiqa.training.rounds import Round, Tested
from hyperiqa.training.sets import Figures, RunData
from hyperiqa.training.starts import StartingModel
from hyperiqa.training.state import RunState, open_run, settings_of


class HyperIQASolver:
    """A run of `--train_test_num` rounds, by the settings that `options.train_options` returns."""

    def __init__(self, options: argparse.Namespace, sets: read_sets.RunSets | None = None):
        """sets: those of `read_sets`, where they were read before."""
        self.options = options
        self.sets = sets
        self.begun = time.perf_counter()
        self.initial_start = StartingModel.of(options) if options.init else None
        self.teacher_start = StartingModel.teacher_of(options) if options.teacher else None
        # In fp32, until `begin_or_resume` knows the precision.
        self.hardware = device.choose_hardware(
            processes.device_of_process(options.device), options.workers
        )
        device.set_backends(options.deterministic)
        device.map_large_tensors_separately()
        self.criterion = losses.make_criterion(options)
        self.schedule = schedules.make_schedule(options)
        self.signals = signals.StopSignals(several=processes.world_size() > 1)
        # `opened` fills these in, because they take time or leave files.
        self.data: RunData = None
        self.teacher: hypernet.QualityNet = None
        self.log: log.RunLog = None
        self.state: RunState = None
        self.round: Round = None
        self.folder: Path = None
        # The state to resume from, until its round has taken it up.
        self.saved: dict | None = None
        # The results of the newest epoch's tests.
        self.tested = Tested()
        # What the `end` record says if the run ends now.
        self.status = "failed"
        # The costs of each of several processes, measured once.
        self.costs: list[dict[str, float]] = []

    def run(self) -> None:
        """Train and test. Every exit except a kill leaves an `end` record with its reason."""
        options = self.options
        with self.signals, self.opened() as state:
            for number in range(state.round, options.train_test_num + 1):
                self.begin_round(number)
                for epoch in state.epochs_left(options.epochs):
                    if self.stops_early():
                        break
                    self.begin_epoch(epoch)
                    result: dict[str, Figures] = {"train": self.train()}
                    seconds = {"train": state.progress.seconds}
                    self.tested = Tested()
                    for part in self.data.tests:
                        start = time.perf_counter()
                        result[part] = self.test(part)
                        seconds[part] = time.perf_counter() - start
                    result = self.data.parts.with_means(result)
                    self.log_epoch(result, seconds)
                    self.keep_if_best(result)
                    state.progress = None
                    self.save()
                self.end_round()
            for line in log.closing_lines(self.log, options, state, self.folder):
                self.log.line(line)

    def build_model(self, seed: int) -> hypernet.QualityNet:
        """The model of `--init`, or a new one: its backbone pretrained, the rest from `seed`."""
        options = self.options
        torch.manual_seed(seed)
        if self.initial_start:
            model = self.initial_start.model(self.data.common, options)
        else:
            model = factory.new_model(options)
            if options.head == "mlp":
                # Whatever the scale: scores begin in its middle, and steps are a part of it.
                scores = self.data.common.range
                model.rescale((scores[1] - scores[0]) / 10 or 1, sum(scores) / 2)
        # The records name the pool that was chosen.
        options.pool = model.pool
        if options.fused_attention:
            model.backbone.fuse_attention()
        if options.freeze_backbone:
            model.backbone.freeze()
        if options.grad_checkpointing:
            model.backbone.save_memory(options.patch_size)
        whole_batch.check_parts(model, options.accumulate)
        if options.lora:
            lora.adapt(model.backbone, vars(options))
        # Patches arrive channels last; weights in the same layout save the convolutions a copy.
        return model.to(self.hardware.device).to(memory_format=torch.channels_last)

    def new_round(self, number: int) -> Round:
        """Round `number` (from 1) with a seed and a model of its own."""
        seed = self.options.seed + number - 1
        model = self.build_model(seed)
        compiled = torch.compile(model) if self.options.compile else model
        return Round(number, seed, model, compiled, optimizers.TrainedModel(model, self.options))

    def run_name(self) -> str:
        """The run's name if `--run_name` gives none."""
        return default_run_name(self.options, "resnet50", "resnet50", alpha_too=False)

    @contextmanager
    def opened(self) -> Iterator[RunState]:
        """Open the run's data, log and state, new or resumed, and record how the run ends."""
        options = self.options
        self.data = RunData(options, options.seed, self.sets)
        # Before anything slow or any file: a flag may name a model that does not exist.
        # One process of a node downloads pretrained weights, which the others then find.
        with processes.node_leader_first():
            self.round = self.new_round(1)
        if self.teacher_start:
            self.teacher = self.teacher_start.model(self.data.common, options)
            self.teacher.to(self.hardware.device).eval()
        settings = settings_of({**vars(options), "fingerprint": self.data.fingerprint})
        self.log, self.saved = open_run(options, self.run_name(), settings)
        self.state = RunState(settings)
        try:
            with processes.shared_failures():
                processes.check_same_in_all("settings or data", settings)
                self.begin_or_resume()
                self.decode_images()
                yield self.state
        except Interrupted:
            self.status = "interrupted"
            self.log.line("Interrupted")
            # `--resume` may name another folder, but `auto` finds this run.
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

    def begin_or_resume(self) -> None:
        """Log the beginning of a new run, or restore the state of a resumed one."""
        if self.saved:
            self.state = RunState.restored(self.saved, self.state.settings, self.hardware.device)
        else:
            chosen, reason = processes.from_rank_zero(
                lambda: precision.choose_precision(
                    self.options, self.hardware.device, self.round.model
                )
            )
            self.state.precision = chosen
            starts = {"Starting from": self.initial_start, "Learning from": self.teacher_start}
            facts = [
                f"Learning rate scheduler: {self.schedule}",
                str(self.criterion),
                *(start.explained(self.data.common, use) for use, start in starts.items() if start),
            ]
            log.log_start(
                self.log, self.options, self.hardware.name, chosen, reason, self.data, facts
            )
        self.hardware = self.hardware.computing_in(self.state.precision)
        if self.options.tensorboard:
            self.log.open_board(first_epoch=self.state.epochs_left(self.options.epochs).start)

    def decode_images(self) -> None:
        """Load the decoded images; processes of the same node share one cache."""
        with processes.node_leader_first():
            self.data.decode(self.hardware.device, self.log, new=self.saved is None)
        if note := fewer_workers(
            self.hardware, max(self.options.batch_size, SCORE_BATCH), self.options.patch_size
        ):
            self.log.line(note)

    def begin_round(self, number: int) -> None:
        """Build the round's model, or restore the saved one."""
        resumed = self.saved is not None
        self.state.next_round(number)
        self.folder = self.log.folder_of(number)
        self.status = "failed"
        # The first round has the model that `opened` built.
        if number > 1:
            self.data.draw_again(self.options.seed + number - 1)
            self.round = self.new_round(number)
        if resumed:
            self.round.trained.restore(self.saved, self.state.epoch, self.rates(self.state.epoch))
            self.saved = None
            # The files go back to what they were when the state was saved.
            if self.state.best:
                self.log.predictions(number, self.state.best["predictions"])
            self.log.epochs(number, self.data.parts.epoch_arrays(self.state.scores))
        elif self.options.train_test_num > 1:
            self.log.line(
                f"Round {number} of {self.options.train_test_num}, seed {self.round.seed}"
            )
        with processes.node_leader_first():
            epoch_batches.prepare_features(
                self.data,
                self.round.model,
                self.round.seed,
                self.hardware.computing_in("fp32"),
                self.log.show if resumed else self.log.line,
            )
        if not resumed:
            self.log.line(log.epoch_columns(["train", *self.data.parts.names]))
        self.round.saved_at = time.monotonic()
        # From now on a signal waits for the end of its step, where the state can be saved.
        self.signals.deferred = True

    def stops_early(self) -> bool:
        """Whether the last `--patience` epochs were not better than an earlier one."""
        return self.options.early_stopping and self.state.without_gain >= self.options.patience

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one that a resumed run was in."""
        if self.state.progress is None:
            self.state.epoch = epoch
            self.state.progress = engine.EpochProgress()
            self.round.trained.begin_epoch(epoch, self.rates(epoch), self.schedule.makes_new(epoch))

    def rates(self, epoch: int, done: float = 0.0) -> schedules.Rates:
        """The learning rates in an epoch; done: the share of its steps that are done."""
        return self.schedule.rates(epoch, done, self.state.history)

    def train(self) -> Figures:
        """Train the epoch, or the rest of it."""
        options = self.options
        epoch = self.state.epoch
        progress = self.state.progress
        batches = epoch_batches.train_batches(
            self.data, self.round.seed, epoch, options.batch_size, processes.share()
        )
        whole_batch.prepare(self.round.model, options.accumulate)
        first_step = progress.step
        loader = make_loader(batches, self.hardware, first_step)
        if self.teacher is not None:
            loader = engine.with_teacher_scores(loader, self.teacher, self.hardware)
        ready = time.perf_counter()
        # A resumed epoch's seconds count from where it was stopped.
        started = ready - progress.seconds
        with engine.progress_bar(
            f"Epoch {epoch}/{options.epochs}",
            len(batches.patches),
            first_step * options.batch_size,
        ) as bar:

            def after_step() -> None:
                # Only now: the first step has made the tensors that the optimizer keeps.
                device.keep_freed_memory()
                bar.update(len(progress.scores[-1]))
                bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
                self.round.trained.after_step(self.rates(epoch, progress.step / len(batches)))
                progress.seconds = time.perf_counter() - started
                if time.monotonic() - self.round.saved_at >= 60 * options.checkpoint_minutes:
                    self.save()
                self.stop_if_asked()

            try:
                result = engine.train_one_epoch(
                    self.round.compiled,
                    self.criterion,
                    self.round.trained.optimizer,
                    loader,
                    self.hardware,
                    progress,
                    after_step,
                )
            except engine.NonFiniteLoss as problem:
                images = epoch_batches.image_names(self.data, batches, problem.step)
                raise UserError(problem.explained(epoch, self.folder / "last.pt", images)) from None
        progress.seconds = time.perf_counter() - started
        self.log_process_costs(ready, progress.step - first_step)
        return result

    def log_process_costs(self, ready: float, steps: int) -> None:
        """Log once the costs of each of several processes; ready: when the steps began."""
        if processes.world_size() == 1 or self.costs:
            return
        self.costs = processes.process_costs(ready - self.begun, ready, steps, self.hardware.device)
        self.log.record(type="processes", processes=self.costs)
        self.log.line("\n".join(processes.cost_lines(self.costs)))

    def test(self, part: str) -> Figures:
        """Score the images of a part, and keep their predictions unless they are for validation."""
        images, split = self.data.tests[part]
        records = images.records(split)
        scores = engine.score_set(
            self.round.trained.tested,
            images,
            records,
            (self.options.test_crop, self.options.test_patch_num),
            self.hardware.computing_in("fp32"),
            self.stop_if_asked,
        )
        set_scores, oriented = self.data.oriented_scores(images.data, scores)
        mos = np.array([record.score for record in records])
        self.tested.scores[part] = (oriented, mos)
        if split != "val":
            self.tested.predictions += [
                (images.data.name, record.name, record.score, score)
                for record, score in zip(records, set_scores.tolist(), strict=True)
            ]
        return metrics.recorded(oriented, mos)

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted where any process has received a signal to stop."""
        signal_number = processes.largest_of_all(self.signals.received or 0)
        if signal_number:
            self.save()
            # Wait until all are here: a launcher ends the others once one has left.
            processes.largest_of_all(0)
            raise Interrupted(signal_number)

    def log_epoch(self, result: dict[str, Figures], seconds: Figures) -> None:
        """Add the epoch to the state's history, the log and the records."""
        state = self.state
        parts = self.data.parts
        # Before the history grows: the rates of the next epoch depend on it.
        lr = vars(self.rates(state.epoch))
        state.history.append(result[parts.chosen]["srcc"])
        state.seconds += sum(seconds.values())
        for part, (scores, _) in self.tested.scores.items():
            state.scores.setdefault(part, []).append(torch.from_numpy(scores).float())
        self.log.epochs(state.round, parts.epoch_arrays(state.scores))
        self.log.line(log.epoch_row(state.epoch, result, ["train", *parts.names]))
        self.log.record(
            type="epoch", round=state.round, epoch=state.epoch, **result, lr=lr, seconds=seconds
        )

    def end_round(self) -> None:
        """Log the round's best epoch and add it to the rounds."""
        state = self.state
        parts = self.data.parts
        # The round is whole: a signal may end the run at once.
        self.signals.deferred = False
        self.status = "finished"
        if self.stops_early():
            self.status = "early_stopped"
            self.log.line("Early stopping triggered!")
        if self.log.writes:
            state.clear_models(self.folder, keep=1)
        epoch = state.best["epoch"]
        best = {part: state.best["result"][part] for part in parts.names}
        self.log.line(f"{log.figures_text(best[parts.chosen], before='Best ')} (epoch {epoch})")
        # On the images that chose it, the best of many noisy epochs looks better than it is.
        bias = parts.selection_bias(state.scores)
        if bias >= 0.0005:
            self.log.line(
                f"Choosing the epoch on the test set inflates the SRCC by about {bias:.3f}"
            )
        state.rounds.append(
            {
                "round": state.round,
                "seed": self.round.seed,
                "best_epoch": epoch,
                "selection_price": bias,
                **best,
            }
        )

    def keep_if_best(self, result: dict[str, Figures]) -> None:
        """Keep the epoch's model and predictions where its SRCC is the best so far.

        Log that, and the rates of the next epoch if there will be one.
        """
        state = self.state
        chosen = self.data.parts.chosen
        better = state.is_better(chosen, result[chosen]["srcc"])
        # With None, no SRCC was defined so far: the newest model is kept without being better.
        if better is not False:
            file = "best_model_srcc_{srcc:.4f}_plcc_{plcc:.4f}.pkl".format(**result[chosen])
            if self.log.writes:
                self.describe_round()
                best_model.save(
                    self.folder / file,
                    self.log.name,
                    self.data,
                    state,
                    self.round,
                    self.tested,
                    result,
                )
            self.log.predictions(state.round, self.tested.predictions)
            state.keep(result, file, self.tested.predictions)
        if better:
            state.without_gain = 0
            self.log.line(f"New best model saved! {log.figures_text(result[chosen])}")
        else:
            state.without_gain += 1
            self.log.line(f"No improvement for {counted(state.without_gain, 'epoch')}")
        if state.epoch < self.options.epochs and not self.stops_early():
            self.log.line(f"Learning rates: {self.rates(state.epoch + 1)}")

    def describe_round(self) -> None:
        """Describe once what all models of the round share, for their certificates."""
        if self.round.certificate is None:
            starts = {"init": self.initial_start, "teacher": self.teacher_start}
            self.round.certificate = certificate.describe_round(
                self.options, self.hardware, self.data, starts
            )

    def save(self) -> None:
        """Save everything that the rest of the run depends on, as of now."""
        if self.log.writes:
            self.state.save(self.folder, self.round.trained.state(), self.log)
        self.round.saved_at = time.monotonic()
