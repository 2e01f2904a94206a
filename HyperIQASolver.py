"""One training run, readable top to bottom: build, epochs, schedule, early stopping, best model, records."""

from __future__ import annotations

import argparse
import math
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoints
import engine
import metrics
from data_loader import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SCORE_BATCH,
    ImageCache,
    PatchBatches,
    addressed_seed,
    make_loader,
    put_on_gpu,
    test_patches,
    train_patches,
)
from engine import EpochProgress
from folders import READERS, Demo, find_spaq
from losses import QualityLoss
from lr_schedules import adam_for_epoch, make_schedule
from models import Backbone, HyperNet, ResNetBackbone
from options import Interrupted, StopSignals, UserError, figure_settings
from reading.records import HERE, DataSet, Record, take_validation
from run_log import epoch_columns, epoch_row, open_run, plain, versions

Figures = dict[str, float]


class HyperIQASolver:
    """A run of `--train_test_num` rounds. `options` are the settings that `options.train_options` returns."""

    # In a run's name the default backbone goes by this shorter name, others by their own.
    default_backbone, default_name = "resnet50", "resnet50"
    always_names_alpha = False

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = engine.choose_device(options.device)
        engine.set_backends(options.deterministic)
        engine.keep_freed_memory()
        self.bf16, self.bf16_reason = engine.choose_bf16(options.precision, self.device)
        self.workers = options.workers if options.workers is not None else (4 if self.device.type == "cuda" else 0)
        self.criterion = QualityLoss(options.ranking_loss_alpha, options.ranking_loss_margin, options.ranking_loss_form)
        self.schedule = make_schedule(
            options.lr_scheduler, options.lr, options.lr_ratio, options.epochs, options.training_fixes
        )
        self.signals = StopSignals()
        self.rounds: list[dict[str, object]] = []

    # ------------------------------------------------------------------------------------------ building
    def build_backbone(self, pretrained: bool) -> Backbone:
        return ResNetBackbone(self.options.backbone, pretrained)

    def build_model(self, seed: int) -> HyperNet:
        """A new model with weights from `seed`, and pretrained or given ones for the backbone."""
        o = self.options
        torch.manual_seed(seed)
        try:
            backbone = self.build_backbone(pretrained=o.pretrained and o.backbone_weights is None)
        except OSError as problem:
            raise UserError(
                f"the pretrained weights of {o.backbone} cannot be downloaded ({problem}); "
                "give --backbone_weights PATH or --no_pretrained"
            ) from None
        if o.backbone_weights is not None:
            checkpoints.load_backbone_weights(backbone.pretrained_part, o.backbone_weights)
        # Patches arrive channels last; weights in that layout too save the convolutions a copy.
        return HyperNet(backbone, o.fusion).to(self.device, memory_format=torch.channels_last)

    def read_data(self, seed: int) -> tuple[DataSet, DataSet | None, str]:
        """(training set, SPAQ for the cross test or None, what the log says where it is None)."""
        o = self.options
        reader = READERS[o.dataset](o.dataset_path, seed, o.lower_is_better)
        official_validation = o.select_on == "val" and o.val_fraction is None
        data = reader.read(("train", "val", "test") if official_validation else ("train", "test"))
        if o.val_fraction is not None:
            take_validation(data, o.val_fraction, seed)
        if o.dataset == "spaq" or not o.spaq:
            return data, None, "SPAQ cross test: off"
        folder = find_spaq(o.spaq_path, reader.spaq_root if isinstance(reader, Demo) else None)
        if folder is None:
            return data, None, "SPAQ cross test: skipped, found neither spaq/ nor spaq-test/ (--spaq_path gives it)"
        return data, READERS["spaq"](folder, seed).read_all_as_test(), ""

    def run_name(self) -> str:
        o = self.options
        backbone = self.default_name if o.backbone == self.default_backbone else o.backbone
        parts = [backbone, "multiscale" if o.fusion == "concat" else ""]
        if o.ranking_loss_alpha or self.always_names_alpha:
            parts.append(f"ranking_alpha{o.ranking_loss_alpha:g}")
        parts.append(datetime.now().strftime("%Y%m%d_%H%M%S"))
        return "_".join(part for part in parts if part)

    # ------------------------------------------------------------------------------------------- the run
    def run(self) -> None:
        """Train and test; every exit but a kill leaves an `end` record that says how it came."""
        o = self.options
        with self.signals:
            self.data, self.spaq, spaq_note = self.read_data(o.seed)
            self.settings = plain({**figure_settings(o), "fingerprint": self._fingerprint()})
            self.parts = ["val", "test", "spaq"] if o.select_on == "val" else ["test", "spaq"]
            self.parts = self.parts if self.spaq else self.parts[:-1]
            self.log, state = open_run(
                o.log_dir, o.checkpoint_dir, o.run_name, self.run_name(), o.resume, self.settings
            )
            status = "failed"
            try:
                if state is None:
                    self._log_settings(spaq_note)
                if o.tensorboard:
                    self.log.open_board(first_epoch=state["epoch"] + (not state["progress"]) if state else 1)
                self._load_images(self.log.line if state is None else self.log.show)
                self.rounds = state["rounds"] if state else []
                first = state["round"] if state else 1
                for number in range(first, o.train_test_num + 1):
                    status = self._run_round(number, state if number == first else None)
                self._log_medians()
            except Interrupted:
                status = "interrupted"
                self.log.line("Interrupted")
                command = re.sub(r" --resume[ =]\S+", "", shlex.join(sys.argv))
                self.log.show(f"Go on with: python {command} --resume auto")
                raise
            except UserError as mistake:
                status = "failed"
                self.log.line(f"error: {mistake}")
                raise
            finally:
                self.log.record(type="end", status=status, rounds=self.rounds, medians=self._medians())
                self.log.close()

    def _fingerprint(self) -> dict[str, str]:
        return {data.name: data.fingerprint() for data in (self.data, self.spaq) if data}

    def _log_settings(self, spaq_note: str) -> None:
        o, log = self.options, self.log
        flags = {name: value for name, value in sorted(vars(o).items()) if name != "demo_defaults"}
        counts = {part: len(self.data.split(part)) for part in ("train", "val", "test") if self.data.split(part)}
        if self.spaq:
            counts["spaq"] = len(self.spaq.records)
        log.record(
            type="run",
            name=log.name,
            started=datetime.now().isoformat(timespec="seconds"),
            flags=flags,
            device=self._device_name(),
            precision="bf16" if self.bf16 else "fp32",
            versions=versions(),
            data=counts,
            fingerprint=self._fingerprint(),
        )
        log.line(f"Run: {log.name}")
        log.line("Settings: " + " ".join(f"{name}={_shown(value)}" for name, value in flags.items()))
        if o.demo_defaults:
            brought = " ".join(f"--{name} {_shown(value)}" for name, value in o.demo_defaults.items())
            log.line(f"The demo brings its own defaults: {brought}")
        log.line(f"Device: {self._device_name()}")
        log.line(f"Precision: training {'bf16 autocast' if self.bf16 else 'fp32'} ({self.bf16_reason}), scoring fp32")
        loose = [flag for flag, on in (("--no_deterministic", not o.deterministic), ("--compile", o.compile)) if on]
        if loose:
            log.line(f"Not exactly repeatable, because of {' and '.join(loose)}")
        for note in self.data.notes + (self.spaq.notes if self.spaq else []):
            log.line(note)
        log.line(
            f"{self.data.name}: " + ", ".join(f"{n} {part} images" for part, n in counts.items() if part != "spaq")
        )
        log.line(spaq_note or f"SPAQ cross test: {counts['spaq']} images")
        log.line(f"Learning rate scheduler: {self.schedule}")
        log.line(
            f"Early stopping enabled with patience={o.patience}" if o.early_stopping else "Early stopping disabled"
        )
        if self.criterion.alpha:
            log.line(
                f"Ranking loss enabled: alpha={o.ranking_loss_alpha:g}, margin={o.ranking_loss_margin:g}, "
                f"form={o.ranking_loss_form}"
            )
        if o.select_on == "test":
            log.line("The best epoch is chosen on the test set, as in published results; --select_on val avoids that")
        else:
            log.line("The best epoch is chosen on validation images; the test figures are those of that epoch")

    def _device_name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return f"{self.device} ({name})"

    def _load_images(self, say: Callable[[str], None]) -> None:
        """Decode and resize every image once, for all rounds."""
        o = self.options
        cache_dir = (o.cache_dir or HERE / "cache") if o.cache else None
        self.caches: dict[str, ImageCache] = {}
        self.bad: dict[Path, str] = {}
        for data, resize in ((self.data, o.resize), (self.spaq, o.spaq_resize)):
            if data is None:
                continue
            start, paths = time.perf_counter(), [r.path for r in data.records]
            cache = ImageCache(data.name, paths, resize, o.patch_size, cache_dir, o.exif_rotate)
            self.caches[data.name] = cache
            self.bad |= cache.bad
            place = "memory" if cache.folder is None else f"cache {cache.folder}"
            say(
                f"{data.name}: {len(cache)} images {'found' if cache.was_there else 'decoded'} in {place}, "
                f"resize {resize}, {cache.bytes / 2**20:.0f} MiB, {time.perf_counter() - start:.1f} s"
            )
            if cache.upscaled:
                say(f"{data.name}: {cache.upscaled} images smaller than the patch were scaled up to it")
        if self.bad:
            self._drop_bad_images(say)
        say(f"Patches are cut on: {put_on_gpu(self.caches.values(), o.cache_device, self.device)}")

    def _drop_bad_images(self, say: Callable[[str], None]) -> None:
        listed = "; ".join(f"{path}: {reason}" for path, reason in sorted(self.bad.items()))
        total = sum(len(cache) for cache in self.caches.values())
        text = f"{len(self.bad)} of {total} images cannot be read: {listed}"
        if not self.options.skip_bad_images:
            raise UserError(f"{text} (--skip_bad_images drops them)")
        say(f"Skipped: {text}")
        if say == self.log.line:
            self.log.record(type="skipped", images={str(path): reason for path, reason in sorted(self.bad.items())})

    def _good(self, data: DataSet, split: str) -> list[Record]:
        records = [record for record in data.split(split) if record.path not in self.bad]
        if not records:
            raise UserError(f"{data.name}: no readable image is left in the {split} split")
        return records

    def _batches(
        self, data: DataSet, records: list[Record], batch_size: int, patches_of: Callable[[np.ndarray], object]
    ) -> PatchBatches:
        cache = self.caches[data.name]
        images = [cache.index[r.path] for r in records]
        patches = patches_of(cache.sizes[images])
        return PatchBatches(cache, images, [r.score for r in records], patches, self.options.patch_size, batch_size)

    # -------------------------------------------------------------------------------------------- a round
    def _run_round(self, number: int, state: dict[str, object] | None) -> str:
        """Train one round, or the rest of it; returns `finished` or `early_stopped`."""
        o, log = self.options, self.log
        self.round, self.seed = number, o.seed + number - 1
        if number > 1:  # the same images, but a random split is drawn anew
            self.data, self.spaq, _ = self.read_data(self.seed)
        self.model = self.build_model(self.seed)
        # The compiled model shares the plain one's parameters; scoring and saving use the plain one.
        self.trained_model = torch.compile(self.model) if o.compile else self.model
        self.epoch, self.progress, self.optimizer = 0, None, None
        self.best: dict[str, object] | None = None
        self.without_gain = 0
        if state:
            self._restore(state)
        else:
            if o.train_test_num > 1:
                log.line(f"Round {number} of {o.train_test_num}, seed {self.seed}")
            log.line(epoch_columns(["train", *self.parts]))
        self.saved_at, self.signals.deferred = time.monotonic(), True
        while True:
            stopped = o.early_stopping and self.without_gain >= o.patience
            if self.progress is None and (stopped or self.epoch >= o.epochs):
                break
            if self.progress is None:
                self.epoch, self.progress = self.epoch + 1, EpochProgress()
                self.optimizer = self._adam(self.optimizer)
            result = self._run_epoch()
            log.line(epoch_row(self.epoch, result, ["train", *self.parts]))
            log.record(type="epoch", round=number, epoch=self.epoch, **result)
            log.line(f"Learning rates: {self.schedule.rates(self.epoch + 1)}")
            self.without_gain = 0 if self._keep_if_best(result) else self.without_gain + 1
            if self.without_gain:
                log.line(f"No improvement for {self.without_gain} epoch{'s' if self.without_gain > 1 else ''}")
            self.progress = None
            self._save_last()
        self.signals.deferred = False
        if stopped:
            log.line("Early stopping triggered!")
        self._clear_old_models(keep=1)
        best = self.best["result"][self.parts[0]]
        log.line(f"Best SRCC: {best['srcc']:.4f}, Best PLCC: {best['plcc']:.4f} (epoch {self.best['epoch']})")
        figures = {part: self.best["result"][part] for part in self.parts}
        self.rounds.append({"round": number, "seed": self.seed, "best_epoch": self.best["epoch"], **figures})
        return "early_stopped" if stopped else "finished"

    def _adam(self, previous: torch.optim.Adam | None) -> torch.optim.Adam:
        head, backbone = self.model.parameter_groups()
        return adam_for_epoch(self.schedule, self.epoch, head, backbone, self.options.weight_decay, previous)

    def _run_epoch(self) -> dict[str, Figures]:
        """Train and test the epoch, or the rest of it; returns its record. The predictions stay at hand."""
        o, epoch, seconds = self.options, self.epoch, {}
        records = self._good(self.data, "train")
        batches = self._batches(
            self.data,
            records,
            o.batch_size,
            lambda sizes: train_patches(sizes, o.patch_size, o.train_patch_num, self.seed, epoch),
        )
        self.train_started = time.perf_counter() - self.progress.seconds
        done = self.progress.step
        with self._bar(f"Epoch {epoch}/{o.epochs}", len(batches.patches), done * o.batch_size) as bar:
            try:
                losses, scores, mos = engine.train_one_epoch(
                    self.trained_model,
                    self.criterion,
                    self.optimizer,
                    self._loader(batches, done),
                    self.device,
                    lambda step: torch.manual_seed(int(addressed_seed(self.seed, epoch, step).generate_state(1)[0])),
                    self.bf16,
                    bar,
                    self.progress,
                    self._after_step,
                )
            except engine.NonFiniteLoss as problem:
                self._explain_non_finite(problem, batches, records)
        self.progress.seconds = seconds["train"] = time.perf_counter() - self.train_started
        result = {"train": {**losses, "srcc": metrics.srcc(scores, mos), "plcc": metrics.plcc(scores, mos)}}
        self.predictions: list[tuple[str, str, float, float]] = []
        for part in self.parts:
            start = time.perf_counter()
            result[part] = self._test(part)
            seconds[part] = time.perf_counter() - start
        rates = self.schedule.rates(epoch)
        return {**result, "lr": {"head": rates.head, "backbone": rates.backbone}, "seconds": seconds}

    def _after_step(self) -> None:
        self.progress.seconds = time.perf_counter() - self.train_started
        if time.monotonic() - self.saved_at >= 60 * self.options.checkpoint_minutes:
            self._save_last()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.signals.received:
            self._save_last()
            raise Interrupted(self.signals.received)

    def _explain_non_finite(self, problem: engine.NonFiniteLoss, batches: PatchBatches, records: list[Record]) -> None:
        rows = slice(problem.step * batches.batch_size, (problem.step + 1) * batches.batch_size)
        names = sorted({records[i].name for i in batches.patches.image[rows]})
        last = self._round_folder() / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        raise UserError(
            f"the loss is {problem.loss} in epoch {self.epoch}, step {problem.step + 1}; {kept}; "
            f"images of this batch: {', '.join(names)}"
        ) from None

    def _test(self, part: str) -> Figures:
        o = self.options
        data, split = (self.spaq, "test") if part == "spaq" else (self.data, part)
        records = self._good(data, split)
        batches = self._batches(
            data,
            records,
            SCORE_BATCH,
            lambda sizes: test_patches(sizes, o.patch_size, o.test_crop, o.test_patch_num),
        )
        with self._bar(f"Testing {data.name} ({part})", len(batches.patches)) as bar:
            loader = self._loader(batches)
            scores = engine.score(self.model, loader, len(records), self.device, bar, self._stop_if_asked)
        mos = [r.score for r in records]
        if part != "val":
            rows = zip(records, scores.tolist(), strict=True)
            self.predictions += [(data.name, r.name, r.score, s) for r, s in rows]
        # A model of badness agrees with opinions of goodness when its scores fall as they rise.
        sign = 1 if data.higher_is_better == self.data.higher_is_better else -1
        return {"srcc": metrics.srcc(sign * scores, mos), "plcc": metrics.plcc(sign * scores, mos)}

    def _loader(self, batches: PatchBatches, start: int = 0):
        return make_loader(batches, self.workers, self.device.type == "cuda", start)

    def _bar(self, text: str, total: int, done: int = 0) -> tqdm:
        return tqdm(total=total, initial=done, desc=text, unit="patch", leave=False, dynamic_ncols=True)

    # ------------------------------------------------------------------------------- best model, checkpoints
    def _keep_if_best(self, result: dict[str, Figures]) -> bool:
        """Keep the epoch's model and predictions where its SRCC is the best so far.

        An undefined SRCC is no improvement, but as long as none was defined the newest model is kept.
        """
        srcc, plcc = result[self.parts[0]]["srcc"], result[self.parts[0]]["plcc"]
        best = self.best["result"][self.parts[0]]["srcc"] if self.best else math.nan
        improved = not math.isnan(srcc) and (math.isnan(best) or srcc > best)
        if not improved and not math.isnan(best):
            return False
        file = f"best_model_srcc_{srcc:.4f}_plcc_{plcc:.4f}.pkl"
        state = checkpoints.portable_state(self.model, self._description(result))
        checkpoints.save(self._round_folder() / file, state)
        self.log.predictions(self.round, self.predictions)
        older = [name for name in self.best["files"] if name != file] if self.best else []
        self.best = {"epoch": self.epoch, "result": result, "files": [file, *older], "predictions": self.predictions}
        if improved:
            self.log.line(f"New best model saved! SRCC: {srcc:.4f}, PLCC: {plcc:.4f}")
        return improved

    def _clear_old_models(self, keep: int) -> None:
        """Remove older best models, but for those that a state which could be resumed from still names."""
        if self.best:
            self.best["files"] = self.best["files"][:keep]
            for path in self._round_folder().glob("best_model_srcc_*.pkl"):
                if path.name not in self.best["files"]:
                    path.unlink()

    def _round_folder(self) -> Path:
        return self.log.checkpoints if self.round == 1 else self.log.checkpoints / f"round{self.round}"

    def _description(self, result: dict[str, Figures]) -> dict[str, object]:
        """What is needed to use the model without repeating a flag."""
        o, mos = self.options, [r.score for r in self.data.records]
        return {
            "backbone": o.backbone,
            "fusion": o.fusion,
            "patch_size": o.patch_size,
            "resize": o.resize,
            "exif_rotate": o.exif_rotate,
            "seed": self.seed,
            "dataset": self.data.name,
            "score_range": [min(mos), max(mos)],
            "higher_is_better": self.data.higher_is_better,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "test_crop": o.test_crop,
            "test_patch_num": o.test_patch_num,
            "metrics": {part: result[part] for part in self.parts},
            "run": self.log.name,
            "versions": versions(),
        }

    def _save_last(self) -> None:
        """Everything that the rest of the run depends on, as of now."""
        if self.progress is not None:
            self.progress.check_finite()
        checkpoints.save_last(
            self._round_folder(),
            {
                "settings": self.settings,
                "round": self.round,
                "rounds": self.rounds,
                "epoch": self.epoch,
                "progress": self.progress.state() if self.progress else None,
                "model": checkpoints.portable_state(self.model),
                "optimizer": self.optimizer.state_dict(),
                "without_gain": self.without_gain,
                "best": self.best,
                "lengths": self.log.lengths(),
            },
        )
        # The state before this one, previous.pt, may still name the best model before this one.
        self._clear_old_models(keep=2)
        self.saved_at = time.monotonic()

    def _restore(self, state: dict[str, object]) -> None:
        """Put the round back to where `_save_last` saw it; the optimizer is rebuilt from the schedule alone."""
        self.model.load_state_dict(state["model"])
        self.epoch, self.without_gain, self.best = state["epoch"], state["without_gain"], state["best"]
        self.optimizer = self._adam(None)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["progress"]:
            self.progress = EpochProgress.from_state(state["progress"], self.device)
        if self.best:
            self.best["predictions"] = [tuple(row) for row in self.best["predictions"]]
            self.log.predictions(self.round, self.best["predictions"])

    # ------------------------------------------------------------------------------------------ summaries
    def _medians(self) -> dict[str, Figures]:
        """Medians over the finished rounds of their best epochs' figures; undefined figures are left out."""
        medians: dict[str, Figures] = {}
        for part in ("val", "test", "spaq"):
            for name in ("srcc", "plcc"):
                values = [r[part][name] for r in self.rounds if part in r and not math.isnan(r[part][name])]
                if values:
                    medians.setdefault(part, {})[name] = statistics.median(values)
        return medians

    def _log_medians(self) -> None:
        n = len(self.rounds)
        for part, figures in self._medians().items():
            text = ", ".join(f"{name.upper()} {value:.4f}" for name, value in figures.items())
            self.log.line(f"Median {part} of {n} round{'s' if n > 1 else ''}: {text}")


def _shown(value: object) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
