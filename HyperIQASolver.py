"""One training run, readable top to bottom: build, epochs, schedule, early stopping, best model, records."""

from __future__ import annotations

import argparse
import math
import platform
import statistics
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
from folders import HERE, READERS, DataSet, Demo, Record, find_spaq
from losses import QualityLoss
from lr_schedules import adam_for_epoch, make_schedule
from models import Backbone, HyperNet, ResNetBackbone
from options import UserError
from run_log import RunLog, versions

Figures = dict[str, float]


def choose_device(name: str) -> torch.device:
    """`--device` -> device. Raises UserError where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def choose_bf16(precision: str, device: torch.device) -> tuple[bool, str]:
    """`--precision` -> (whether to train under bf16 autocast, why)."""
    if precision != "auto":
        return precision == "bf16", "as asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if platform.system() == "Linux" and cpuinfo.exists() else []
    native = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    return bool(native), f"this CPU has {native[0]}" if native else "no native bf16 here"


def set_backends(deterministic: bool) -> None:
    """cuDNN's kernels: reproducible ones, unless the user prefers speed (`--no_deterministic`)."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # fp32 means fp32: cuDNN's default rounds the inputs of convolutions to 10 bits.
    torch.backends.cudnn.allow_tf32 = False


class HyperIQASolver:
    """A run of `--train_test_num` rounds. `options` are the settings that `options.train_options` returns."""

    # In a run's name the default backbone goes by this shorter name, others by their own.
    default_backbone, default_name = "resnet50", "resnet50"
    always_names_alpha = False

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = choose_device(options.device)
        self.bf16, self.bf16_reason = choose_bf16(options.precision, self.device)
        set_backends(options.deterministic)
        self.workers = options.workers if options.workers is not None else (4 if self.device.type == "cuda" else 0)
        self.criterion = QualityLoss(options.ranking_loss_alpha, options.ranking_loss_margin, options.ranking_loss_form)
        self.schedule = make_schedule(
            options.lr_scheduler, options.lr, options.lr_ratio, options.epochs, options.training_fixes
        )

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
        return HyperNet(backbone, o.fusion).to(self.device)

    def read_data(self, seed: int) -> tuple[DataSet, DataSet | None, str]:
        """(training set, SPAQ for the cross test or None, what the log says where it is None)."""
        o = self.options
        reader = READERS[o.dataset](o.dataset_path, seed, o.lower_is_better)
        data = reader.read()
        if o.dataset == "spaq" or not o.spaq:
            return data, None, "SPAQ cross test: off"
        folder = find_spaq(o.spaq_path, reader.spaq_root if isinstance(reader, Demo) else None)
        if folder is None:
            return (
                data,
                None,
                "SPAQ cross test: skipped, found neither spaq/ nor spaq-test/ (--spaq_path gives it)",
            )
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
        """Train and test; every exit leaves an `end` record that says how it came."""
        o = self.options
        self.data, self.spaq, spaq_note = self.read_data(o.seed)
        model = self.build_model(o.seed)
        self.log = RunLog(o.log_dir, o.checkpoint_dir, o.run_name or self.run_name(), o.run_name is not None)
        self.rounds: list[dict[str, object]] = []
        status = "failed"
        try:
            self._log_settings(model, spaq_note)
            self._load_images()
            for number in range(1, o.train_test_num + 1):
                if number > 1:
                    self.data, self.spaq, _ = self.read_data(o.seed + number - 1)
                    model = self.build_model(o.seed + number - 1)
                status = self._run_round(number, model)
            self._log_medians()
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except UserError as mistake:
            status = "failed"
            self.log.line(f"error: {mistake}")
            raise
        finally:
            self.log.record(type="end", status=status, rounds=self.rounds, medians=self._medians())
            self.log.close()

    def _log_settings(self, model: HyperNet, spaq_note: str) -> None:
        o, log = self.options, self.log
        settings = {name: value for name, value in sorted(vars(o).items()) if name != "demo_defaults"}
        counts = {"train": len(self.data.split("train")), "test": len(self.data.split("test"))}
        if self.spaq:
            counts["spaq"] = len(self.spaq.records)
        self.counts = counts
        log.record(
            type="run",
            name=log.name,
            started=datetime.now().isoformat(timespec="seconds"),
            flags=settings,
            device=self._device_name(),
            precision="bf16" if self.bf16 else "fp32",
            versions=versions(),
            data=counts,
            fingerprint={d.name: d.fingerprint() for d in (self.data, self.spaq) if d},
        )
        log.line(f"Run: {log.name}")
        log.line("Settings: " + " ".join(f"{name}={_shown(value)}" for name, value in settings.items()))
        if o.demo_defaults:
            brought = " ".join(f"{name}={_shown(value)}" for name, value in o.demo_defaults.items())
            log.line(f"The demo brings its own defaults: {brought}")
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        log.line(f"Model: {o.backbone}, fusion {o.fusion}, {parameters:.1f} M parameters, patch size {o.patch_size}")
        log.line(f"Device: {self._device_name()}")
        log.line(f"Precision: training {'bf16 autocast' if self.bf16 else 'fp32'} ({self.bf16_reason}), scoring fp32")
        for note in self.data.notes + (self.spaq.notes if self.spaq else []):
            log.line(note)
        log.line(f"{o.dataset}: {counts['train']} train images, {counts['test']} test images")
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
        log.line("The best epoch is chosen on the test set, as published results do")

    def _device_name(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        return f"{self.device} ({name})"

    def _load_images(self) -> None:
        """Decode and resize every image once, for all rounds."""
        o = self.options
        cache_dir = (o.cache_dir or HERE / "cache") if o.cache else None
        self.caches: dict[str, ImageCache] = {}
        for data, resize in ((self.data, o.resize), (self.spaq, o.spaq_resize)):
            if data is None:
                continue
            start = time.perf_counter()
            cache = ImageCache(data.name, [r.path for r in data.records], resize, o.patch_size, cache_dir)
            self.caches[data.name] = cache
            place = "memory" if cache.folder is None else f"cache {cache.folder}"
            self.log.line(
                f"{data.name}: {len(cache)} images {'found' if cache.was_there else 'decoded'} in {place}, "
                f"resize {resize}, {cache.bytes / 2**20:.0f} MiB, {time.perf_counter() - start:.1f} s"
            )
            if cache.upscaled:
                self.log.line(f"{data.name}: {cache.upscaled} images smaller than the patch were scaled up to it")
        self.log.line(f"Patches are cut on: {put_on_gpu(self.caches.values(), o.cache_device, self.device)}")

    def _batches(
        self,
        data: DataSet,
        records: list[Record],
        batch_size: int,
        patches_of: Callable[[np.ndarray], object],
    ) -> PatchBatches:
        cache = self.caches[data.name]
        images = [cache.index[r.path] for r in records]
        return PatchBatches(
            cache,
            images,
            [r.score for r in records],
            patches_of(cache.sizes[images]),
            self.options.patch_size,
            batch_size,
        )

    # -------------------------------------------------------------------------------------------- a round
    def _run_round(self, number: int, model: HyperNet) -> str:
        """Train one round; returns `finished` or `early_stopped`."""
        o, log = self.options, self.log
        self.round, self.seed, self.model = number, o.seed + number - 1, model
        # The compiled model shares the plain one's parameters; scoring and saving use the plain one.
        self.trained_model = torch.compile(model) if o.compile else model
        self.best: dict[str, object] | None = None
        head, backbone = model.parameter_groups()
        optimizer, without_gain, status = None, 0, "finished"
        if o.train_test_num > 1:
            log.line(f"Round {number} of {o.train_test_num}, seed {self.seed}")
        log.line("\t".join(self._columns()))
        for epoch in range(1, o.epochs + 1):
            optimizer = adam_for_epoch(self.schedule, epoch, head, backbone, o.weight_decay, optimizer)
            result = self._run_epoch(epoch, optimizer)
            log.line("\t".join(self._row(epoch, result)))
            log.record(type="epoch", round=number, epoch=epoch, **result)
            log.line(f"Learning rates: {self.schedule.rates(epoch + 1)}")
            without_gain = 0 if self._keep_if_best(epoch, result) else without_gain + 1
            if without_gain:
                log.line(f"No improvement for {without_gain} epoch{'s' if without_gain > 1 else ''}")
            self._save_last(epoch, optimizer)
            if o.early_stopping and without_gain >= o.patience:
                log.line("Early stopping triggered!")
                status = "early_stopped"
                break
        best = self.best["result"]["test"]
        log.line(f"Best SRCC: {best['srcc']:.4f}, Best PLCC: {best['plcc']:.4f} (epoch {self.best['epoch']})")
        self.rounds.append(
            {
                "round": number,
                "seed": self.seed,
                "best_epoch": self.best["epoch"],
                **self._tested(self.best["result"]),
            }
        )
        return status

    def _run_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> dict[str, Figures]:
        """Train and test one epoch; returns its record. The predictions stay in `self.predictions`."""
        o, seconds = self.options, {}
        batches = self._batches(
            self.data,
            self.data.split("train"),
            o.batch_size,
            lambda sizes: train_patches(sizes, o.patch_size, o.train_patch_num, self.seed, epoch),
        )
        start = time.perf_counter()
        with self._bar(f"Epoch {epoch}/{o.epochs}", len(batches.patches)) as bar:
            losses, scores, mos = engine.train_one_epoch(
                self.trained_model,
                self.criterion,
                optimizer,
                self._loader(batches),
                self.device,
                lambda step: torch.manual_seed(int(addressed_seed(self.seed, epoch, step).generate_state(1)[0])),
                self.bf16,
                bar,
            )
        seconds["train"] = time.perf_counter() - start
        result = {"train": {**losses, "srcc": metrics.srcc(scores, mos), "plcc": metrics.plcc(scores, mos)}}
        self.predictions: list[tuple[str, str, float, float]] = []
        for part, data in (("test", self.data), ("spaq", self.spaq)):
            if data is not None:
                start = time.perf_counter()
                result[part] = self._test(part, data)
                seconds[part] = time.perf_counter() - start
        rates = self.schedule.rates(epoch)
        return {**result, "lr": {"head": rates.head, "backbone": rates.backbone}, "seconds": seconds}

    def _test(self, part: str, data: DataSet) -> Figures:
        o, records = self.options, data.split("test")
        batches = self._batches(
            data,
            records,
            SCORE_BATCH,
            lambda sizes: test_patches(sizes, o.patch_size, o.test_crop, o.test_patch_num),
        )
        with self._bar(f"Testing {data.name}", len(batches.patches)) as bar:
            scores = engine.score(self.model, self._loader(batches), len(records), self.device, bar)
        mos = [r.score for r in records]
        self.predictions += [(data.name, r.path.name, r.score, float(s)) for r, s in zip(records, scores, strict=True)]
        # A model of badness agrees with opinions of goodness when its scores fall as they rise.
        sign = 1 if data.higher_is_better == self.data.higher_is_better else -1
        return {"srcc": metrics.srcc(sign * scores, mos), "plcc": metrics.plcc(sign * scores, mos)}

    def _loader(self, batches: PatchBatches):
        return make_loader(batches, self.workers, pin_memory=self.device.type == "cuda")

    def _bar(self, text: str, total: int) -> tqdm:
        return tqdm(total=total, desc=text, unit="patch", leave=False, dynamic_ncols=True)

    # ------------------------------------------------------------------------------- best model, records
    def _keep_if_best(self, epoch: int, result: dict[str, Figures]) -> bool:
        """Keep the epoch's model and predictions where its SRCC is the best so far.

        An undefined SRCC is no improvement, but as long as none was defined the newest model is kept.
        """
        srcc, plcc = result["test"]["srcc"], result["test"]["plcc"]
        best = self.best["result"]["test"]["srcc"] if self.best else math.nan
        improved = not math.isnan(srcc) and (math.isnan(best) or srcc > best)
        if not improved and not math.isnan(best):
            return False
        folder = self._round_folder()
        older = list(folder.glob("best_model_srcc_*.pkl"))
        path = folder / f"best_model_srcc_{srcc:.4f}_plcc_{plcc:.4f}.pkl"
        checkpoints.save(path, checkpoints.portable_state(self.model, self._description(result)))
        for file in older:
            if file != path:
                file.unlink()
        self.log.predictions(self.round, self.predictions)
        self.best = {"epoch": epoch, "result": result}
        if improved:
            self.log.line(f"New best model saved! SRCC: {srcc:.4f}, PLCC: {plcc:.4f}")
        return improved

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
            "dataset": self.data.name,
            "score_range": [min(mos), max(mos)],
            "higher_is_better": self.data.higher_is_better,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "test_crop": o.test_crop,
            "test_patch_num": o.test_patch_num,
            "metrics": self._tested(result),
            "run": self.log.name,
            "versions": versions(),
        }

    def _save_last(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        checkpoints.save(
            self._round_folder() / "last.pt",
            {
                "round": self.round,
                "epoch": epoch,
                "model": checkpoints.portable_state(self.model),
                "optimizer": optimizer.state_dict(),
            },
        )

    # --------------------------------------------------------------------------------------------- texts
    def _columns(self) -> list[str]:
        names = ["Epoch", "Train_Loss", "Train_SRCC", "Train_PLCC", "Test_SRCC", "Test_PLCC"]
        return names + (["SPAQ_SRCC", "SPAQ_PLCC"] if self.spaq else [])

    def _row(self, epoch: int, result: dict[str, Figures]) -> list[str]:
        train = result["train"]
        loss = f"{train['loss']:.3f}"
        if "rank" in train:
            loss += f" (L1:{train['l1']:.3f},Rank:{train['rank']:.3f})"
        figures = [
            result[part][name] for part in ("train", "test", "spaq") if part in result for name in ("srcc", "plcc")
        ]
        return [str(epoch), loss, *(f"{figure:.4f}" for figure in figures)]

    @staticmethod
    def _tested(result: dict[str, Figures]) -> dict[str, Figures]:
        return {part: result[part] for part in ("test", "spaq") if part in result}

    def _medians(self) -> dict[str, Figures]:
        """Medians over the finished rounds of their best epochs' figures; undefined figures are left out."""
        medians: dict[str, Figures] = {}
        for part in ("test", "spaq"):
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
