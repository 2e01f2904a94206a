"""How much faster than the published procedure? Both, phase by phase, in one run on the same files.

    python benchmark.py                                     # 113 generated images, Swin-T
    python benchmark.py --backbone resnet --train_patch_num 4
    python benchmark.py --dataset_path koniq-10k --spaq_path spaq-test --train_patch_num 20 --plain_steps 60

Plain is the published procedure written plainly: every start decodes all images with PIL, every patch is
flipped, cropped, converted and normalised one by one in the training process, in fp32; the target network
is a grouped convolution; testing scores one crop at a time, `--test_patch_num` identical centre crops per
image. The ratios are what counts: times on a busy or a small machine say little.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from options import Parser, UserError, run_tool

KONIQ_SHAPE, SPAQ_SHAPE = (1024, 768), (3264, 2448)
PROPORTIONS = {"train": 7046, "test": 2010, "spaq": 2224}
PICTURES = 12  # different ones; more files are copies, which decoding does not notice
LR, WEIGHT_DECAY, PATCH = 2e-5, 5e-4, 224
# (phase, unit, whether more is better)
PHASES = [
    ("first start", "s", False),
    ("second start", "s", False),
    ("training", "patches/s", True),
    ("compute only", "patches/s", True),
    ("testing koniq-10k", "images/s", True),
    ("testing spaq", "images/s", True),
    ("whole epoch", "s", False),
    ("peak memory", "MiB", False),
    ("peak GPU memory", "MiB", False),
]


def parse_flags() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--backbone", choices=["swin", "resnet"], default="swin", help="Swin-T or ResNet-50")
    parser.add_argument("--images", type=int, default=113, metavar="N", help="generate N images in KonIQ's proportions")
    parser.add_argument("--dataset_path", type=Path, metavar="PATH", help="a KonIQ-10k folder instead")
    parser.add_argument("--spaq_path", type=Path, metavar="PATH", help="and a SPAQ folder")
    parser.add_argument("--train_patch_num", type=int, default=2, metavar="N", help="train patches per image")
    parser.add_argument("--test_patch_num", type=int, default=20, metavar="N", help="test patches per image")
    parser.add_argument("--batch_size", type=int, default=96, metavar="N", help="train patches per step")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of our training")
    parser.add_argument("--compile", action="store_true", help="torch.compile our training step")
    parser.add_argument("--no_deterministic", action="store_true", help="let cuDNN choose our kernels")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each; medians are shown")
    parser.add_argument(
        "--plain_steps", type=int, metavar="N", help="measure plain on N training steps and N test images a set at most"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--child", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--cache_dir", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if min(flags.images // 10, flags.train_patch_num, flags.test_patch_num, flags.repeats, flags.batch_size) < 1:
        raise UserError("expected at least 10 images and numbers of at least 1")
    if bool(flags.dataset_path) != bool(flags.spaq_path):
        raise UserError("--dataset_path and --spaq_path belong together")
    return flags


# ---------------------------------------------------------------------------------------------- pictures
def make_images(root: Path, number: int) -> None:
    """KonIQ- and SPAQ-shaped JPEGs of 1/f noise in their layouts, in KonIQ's proportions."""
    total = sum(PROPORTIONS.values())
    counts = {part: max(2, round(number * n / total)) for part, n in PROPORTIONS.items()}
    koniq, spaq = root / "koniq-10k", root / "spaq-test"
    pictures = {shape: [_jpeg(shape, seed) for seed in range(PICTURES)] for shape in (KONIQ_SHAPE, SPAQ_SHAPE)}
    rng, rows = random.Random(0), ["image_name,MOS_zscore"]
    for part, folder in (("train", koniq / "train"), ("test", koniq / "test"), ("spaq", spaq)):
        folder.mkdir(parents=True)
        entries = []
        for i in range(counts[part]):
            name, score = f"{part}_{i:05d}.jpg", round(rng.uniform(5, 95), 3)
            (folder / name).write_bytes(pictures[SPAQ_SHAPE if part == "spaq" else KONIQ_SHAPE][i % PICTURES])
            entries.append({"image": name, "score": score})
            if part != "spaq":
                rows.append(f"{name},{score}")
        listing = spaq / "spaq_test.json" if part == "spaq" else koniq / f"koniq_{part}.json"
        listing.write_text(json.dumps(entries))
    (koniq / "koniq10k_scores_and_distributions.csv").write_text("\n".join(rows) + "\n")


def _jpeg(shape: tuple[int, int], seed: int) -> bytes:
    import numpy as np
    from PIL import Image

    rng, canvas = np.random.default_rng(seed), np.zeros((shape[1], shape[0], 3), np.float32)
    for side in (6, 24, 96, 384, 1536):
        layer = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8))
        canvas += np.asarray(layer.resize(shape, Image.Resampling.BICUBIC), np.float32) * (0.5 if side == 6 else 0.125)
    data = io.BytesIO()
    Image.fromarray(canvas.astype(np.uint8)).save(data, "JPEG", quality=92)
    return data.getvalue()


# -------------------------------------------------------------------------------- the published procedure
def measure_plain(flags: argparse.Namespace, koniq, spaq, device) -> dict[str, float]:
    """The published procedure, phase by phase; see the module's docstring."""
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torchvision import transforms as T

    from data_loader import IMAGENET_MEAN, IMAGENET_STD
    from reading.images import resized_size

    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, which the published code runs with
    sets = {"train": koniq.split("train"), "test": koniq.split("test"), "spaq": spaq.split("test")}
    limit = flags.plain_steps or sys.maxsize

    def decode_all() -> dict[str, list[Image.Image]]:
        decoded = {}
        for part, records in sets.items():
            decoded[part] = []
            for record in records:
                image = Image.open(record.path).convert("RGB")
                height, width = resized_size(image.height, image.width, "384", PATCH)
                decoded[part].append(image.resize((width, height), Image.Resampling.BILINEAR))
        return decoded

    def forward(images: torch.Tensor) -> torch.Tensor:
        weights = model.target_weights(images)
        n, x = len(images), weights["target_in_vec"].reshape(1, -1, 1, 1)
        for i in range(1, 6):
            w, b = weights[f"target_fc{i}w"], weights[f"target_fc{i}b"]
            x = F.conv2d(x, w.reshape(-1, *w.shape[2:]), b.reshape(-1), groups=n)
            x = torch.sigmoid(x) if i < 5 else x
        return x.flatten()

    def train(patches: list[tuple[Image.Image, float]]) -> None:
        model.train()
        for start in range(0, len(patches), flags.batch_size):
            batch = patches[start : start + flags.batch_size]
            images = torch.stack([train_transform(image) for image, _ in batch]).to(device)
            mos = torch.tensor([score for _, score in batch]).to(device)
            optimizer.zero_grad()
            scores = forward(images)
            predictions.extend(scores.detach().cpu().tolist())
            loss = F.l1_loss(scores, mos)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def test(images: list[Image.Image]) -> None:
        model.eval()
        for image in images:
            for _ in range(flags.test_patch_num):
                predictions.append(forward(test_transform(image)[None].to(device)).item())

    normalise = [T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    train_transform = T.Compose([T.RandomHorizontalFlip(), T.RandomCrop(PATCH), *normalise])
    test_transform = T.Compose([T.CenterCrop(PATCH), *normalise])
    predictions: list[float] = []
    losses: list[float] = []
    found: dict[str, float] = {}
    found["first start"], decoded = timed(decode_all, device)
    found["second start"] = timed(decode_all, device)[0]  # nothing was kept: it decodes again
    model = build_model(flags.backbone, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    scores = [record.score for record in sets["train"]]
    patches = [pair for pair in zip(decoded["train"], scores, strict=True) for _ in range(flags.train_patch_num)]
    random.Random(0).shuffle(patches)
    train(patches[: flags.batch_size])  # warm-up
    some = patches[: limit * flags.batch_size]
    found["training"] = len(some) / timed(lambda: train(some), device)[0]
    for part, name in (("test", "testing koniq-10k"), ("spaq", "testing spaq")):
        images = decoded[part][:limit]
        found[name] = len(images) / timed(lambda images=images: test(images), device)[0]
    return found


# --------------------------------------------------------------------------------------------------- ours
def measure_ours(flags: argparse.Namespace, koniq, spaq, device) -> dict[str, float]:
    """What train_swin.py and train_resnet.py do, by the same functions."""
    import torch
    from tqdm import tqdm

    import engine
    from data_loader import (
        SCORE_BATCH,
        ImageCache,
        PatchBatches,
        make_loader,
        put_on_gpu,
        test_patches,
        train_patches,
    )
    from losses import QualityLoss
    from lr_schedules import adam_for_epoch, make_schedule

    engine.set_backends(deterministic=not flags.no_deterministic)
    engine.keep_freed_memory()
    bf16 = engine.choose_bf16(flags.precision, device)[0]

    def start() -> dict[str, ImageCache]:
        caches = {
            d.name: ImageCache(d.name, [r.path for r in d.records], "384", PATCH, flags.cache_dir)
            for d in (koniq, spaq)
        }
        put_on_gpu(caches.values(), "auto", device)
        return caches

    def batches_of(data, split: str, patches_of: Callable, size: int) -> PatchBatches:
        cache, records = caches[data.name], data.split(split)
        images = [cache.index[r.path] for r in records]
        return PatchBatches(cache, images, [r.score for r in records], patches_of(cache.sizes[images]), PATCH, size)

    def load(batches: PatchBatches):
        return make_loader(batches, 4 if device.type == "cuda" else 0, device.type == "cuda")

    def train(loader) -> None:
        engine.train_one_epoch(
            trained,
            QualityLoss(),
            optimizer,
            loader,
            device,
            torch.manual_seed,
            bf16,
            tqdm(disable=True),
            engine.EpochProgress(),
        )

    found: dict[str, float] = {}
    found["first start"] = timed(start, device)[0]
    found["second start"], caches = timed(start, device)
    model = build_model(flags.backbone, device).to(memory_format=torch.channels_last)
    trained = torch.compile(model) if flags.compile else model
    optimizer = adam_for_epoch(make_schedule("none", LR, 10, 1), 1, *model.parameter_groups(), WEIGHT_DECAY)
    batches = batches_of(
        koniq, "train", lambda sizes: train_patches(sizes, PATCH, flags.train_patch_num, 42, 1), flags.batch_size
    )
    one = {name: tensor.to(device) for name, tensor in batches[0].items()}
    train([one] * (4 if flags.compile or flags.no_deterministic else 1))  # warm-up
    found["training"] = len(batches.patches) / timed(lambda: train(load(batches)), device)[0]
    again = [one] * max(1, min(len(batches), 50))
    found["compute only"] = len(again) * len(one["mos"]) / timed(lambda: train(again), device)[0]
    for data, name in ((koniq, "testing koniq-10k"), (spaq, "testing spaq")):
        images = len(data.split("test"))

        def test(data=data, images=images) -> None:
            tested = batches_of(data, "test", lambda sizes: test_patches(sizes, PATCH), SCORE_BATCH)
            engine.score(model, load(tested), images, device)

        found[name] = images / timed(test, device)[0]
    return found


# ------------------------------------------------------------------------------------------- measuring both
def build_model(backbone: str, device):
    """The same model for both, with random weights."""
    import torch

    from models import HyperNet, ResNetBackbone
    from models_swin import SwinBackbone

    torch.manual_seed(0)
    swin = backbone == "swin"
    return HyperNet(SwinBackbone("swin_tiny_patch4_window7_224") if swin else ResNetBackbone("resnet50")).to(device)


def timed(work: Callable[[], object], device) -> tuple[float, object]:
    """(seconds until the device has finished the work, what it returned)."""
    import torch

    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def measure(flags: argparse.Namespace) -> None:
    """A child process: measure one of the two and print it as JSON, so that peak memory is its own."""
    import torch

    from engine import choose_device
    from folders import READERS

    device = choose_device(flags.device)
    koniq = READERS["koniq-10k"](flags.dataset_path).read()
    spaq = READERS["spaq"](flags.spaq_path).read_all_as_test()
    found = (measure_plain if flags.child == "plain" else measure_ours)(flags, koniq, spaq, device)
    counts = {"train": len(koniq.split("train")), "test": len(koniq.split("test")), "spaq": len(spaq.records)}
    found["whole epoch"] = (
        counts["train"] * flags.train_patch_num / found["training"]
        + counts["test"] / found["testing koniq-10k"]
        + counts["spaq"] / found["testing spaq"]
    )
    found["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        found["peak GPU memory"] = torch.cuda.max_memory_allocated(device) / 2**20
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(json.dumps({"found": found, "counts": counts, "device": name, "torch": torch.__version__}))


def run_child(flags: argparse.Namespace, which: str, cache_dir: Path) -> dict:
    words = [sys.executable, __file__, "--child", which, "--cache_dir", cache_dir]
    for name, value in vars(flags).items():
        if name not in ("child", "cache_dir", "json", "images", "repeats") and value not in (None, False):
            words += [f"--{name}"] if value is True else [f"--{name}", value]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"the measurement of {which} failed, see above")
    return json.loads(done.stdout.splitlines()[-1])


def table(plain: dict[str, float], ours: dict[str, float]) -> list[str]:
    lines = [f"{'phase':<20}{'plain':>12}{'ours':>12}  {'unit':<10}{'ratio':>8}", "-" * 64]
    for phase, unit, more_is_better in PHASES:
        a, b = plain.get(phase), ours.get(phase)
        if b is None:
            continue
        if a is None:
            lines.append(f"{phase:<20}{'':>12}{b:>12.4g}  {unit:<10}")
        else:
            ratio = b / a if more_is_better or "memory" in phase else a / b
            lines.append(f"{phase:<20}{a:>12.4g}{b:>12.4g}  {unit:<10}{ratio:>8.2f}")
    share = ours["training"] / ours["compute only"]
    return [*lines, "-" * 64, f"training / compute only: {share:.3f}   (memory: ours / plain, less is better)"]


def main() -> None:
    flags = parse_flags()
    if flags.child:
        measure(flags)
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as scratch:
        if flags.dataset_path is None:
            print(f"Making {flags.images} images …", flush=True)
            make_images(Path(scratch), flags.images)
            flags.dataset_path, flags.spaq_path = Path(scratch, "koniq-10k"), Path(scratch, "spaq-test")
        for repeat in range(flags.repeats):
            for which, measured in runs.items():
                print(f"Measuring {which}, {repeat + 1} of {flags.repeats} …", flush=True)
                child = run_child(flags, which, Path(scratch, f"cache{repeat}"))
                measured.append(child["found"])
    medians = {
        which: {phase: statistics.median(run[phase] for run in measured) for phase in measured[0]}
        for which, measured in runs.items()
    }
    counts = ", ".join(f"{n} {part}" for part, n in child["counts"].items())
    print(
        f"\n{flags.backbone}, {child['device']}, torch {child['torch']}, precision {flags.precision}, {counts} images, "
        f"{flags.train_patch_num} train and {flags.test_patch_num} test patches, medians of {flags.repeats}\n"
    )
    print("\n".join(table(medians["plain"], medians["ours"])))
    if flags.json:
        settings = {name: str(value) for name, value in vars(flags).items()}
        flags.json.write_text(json.dumps({"settings": settings, **child, "runs": runs, "medians": medians}, indent=1))


if __name__ == "__main__":
    run_tool(main)
