"""The published procedure, written plainly, and images to measure it on: what benchmark.py compares this code with.

Every start decodes all images with PIL; every patch is flipped, cropped, converted and normalised one by one in the
training process, in fp32; the target network is a grouped convolution; testing scores one crop at a time."""

import functools
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms as T

from hyperiqa.images.decode import resized_size
from hyperiqa.model.backbone import IMAGENET_MEAN, IMAGENET_STD

LR, WEIGHT_DECAY, PATCH = 2e-5, 5e-4, 224
KONIQ_SHAPE, SPAQ_SHAPE = (1024, 768), (3264, 2448)
PROPORTIONS = {"train": 7046, "test": 2010, "spaq": 2224}
PICTURES = 12  # different ones; more files are copies, which decoding does not notice


def make_images(root: Path, number: int) -> None:
    """KonIQ- and SPAQ-shaped JPEGs of 1/f noise in their layouts, in KonIQ's proportions."""
    koniq, spaq = root / "koniq-10k", root / "spaq-test"
    pictures = {
        shape: [jpeg(shape, seed) for seed in range(PICTURES)]
        for shape in (KONIQ_SHAPE, SPAQ_SHAPE)
    }
    rng, rows = random.Random(0), ["image_name,MOS_zscore"]
    for part, home, shape in (
        ("train", koniq, KONIQ_SHAPE),
        ("test", koniq, KONIQ_SHAPE),
        ("spaq", spaq, SPAQ_SHAPE),
    ):
        folder, listing = (
            (home, "spaq_test.json") if home == spaq else (home / part, f"koniq_{part}.json")
        )
        folder.mkdir(parents=True)
        entries: list[dict[str, Any]] = []
        for i in range(max(2, round(number * PROPORTIONS[part] / sum(PROPORTIONS.values())))):
            entries.append({"image": f"{part}_{i:05d}.jpg", "score": round(rng.uniform(5, 95), 3)})
            (folder / entries[i]["image"]).write_bytes(pictures[shape][i % PICTURES])
        (home / listing).write_text(json.dumps(entries))
        rows += [f"{entry['image']},{entry['score']}" for entry in entries if home == koniq]
    (koniq / "koniq10k_scores_and_distributions.csv").write_text("\n".join(rows) + "\n")


def jpeg(shape: tuple[int, int], seed: int) -> bytes:
    rng, canvas = np.random.default_rng(seed), np.zeros((shape[1], shape[0], 3), np.float32)
    for side in (6, 24, 96, 384, 1536):
        layer = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8))
        canvas += np.asarray(layer.resize(shape, Image.Resampling.BICUBIC), np.float32) * (
            0.5 if side == 6 else 0.125
        )
    Image.fromarray(canvas.astype(np.uint8)).save(data := io.BytesIO(), "JPEG", quality=92)
    return data.getvalue()


class Plain:
    """The published procedure."""

    def __init__(self, flags, model, device):
        torch.backends.cudnn.allow_tf32 = (
            True  # PyTorch's default, which the published code runs with
        )
        self.flags, self.device = flags, device
        normalise = [T.ToTensor(), T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.train_transform = T.Compose(
            [T.RandomHorizontalFlip(), T.RandomCrop(PATCH), *normalise]
        )
        self.test_transform = T.Compose([T.CenterCrop(PATCH), *normalise])
        self.found: list[float] = []  # which the published code keeps too: scores and losses
        self.model = model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def decode(self, record):
        image = Image.open(record.path).convert("RGB")
        height, width = resized_size(image.height, image.width, "384", PATCH)
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def forward(self, images):
        weights = self.model.target_weights(images)
        n, x = len(images), weights["target_in_vec"].reshape(1, -1, 1, 1)
        for i in range(1, 6):
            w, b = weights[f"target_fc{i}w"], weights[f"target_fc{i}b"]
            x = F.conv2d(x, w.reshape(-1, *w.shape[2:]), b.reshape(-1), groups=n)
            x = torch.sigmoid(x) if i < 5 else x
        return x.flatten()

    def train(self, patches: list) -> None:
        self.model.train()
        for start in range(0, len(patches), self.flags.batch_size):
            batch = patches[start : start + self.flags.batch_size]
            images = torch.stack([self.train_transform(image) for image, _ in batch]).to(
                self.device
            )
            mos = torch.tensor([score for _, score in batch]).to(self.device)
            self.optimizer.zero_grad()
            scores = self.forward(images)
            loss = F.l1_loss(scores, mos)
            self.found += [*scores.detach().cpu().tolist(), loss.item()]
            loss.backward()
            self.optimizer.step()

    def test(self, images: list) -> None:
        self.model.eval()
        with torch.no_grad():
            for image in (image for image in images for _ in range(self.flags.test_patch_num)):
                self.found.append(
                    self.forward(self.test_transform(image)[None].to(self.device)).item()
                )


def measure_plain(flags, koniq, spaq, model, timed) -> dict[str, float]:
    """Phase -> what it took; timed(work, device): benchmark.py's clock."""
    device = next(model.parameters()).device
    sets = {"train": koniq.split("train"), "test": koniq.split("test"), "spaq": spaq.split("test")}
    limit = flags.plain_steps or sys.maxsize
    plain = Plain(flags, model, device)

    def decode_all() -> dict[str, list]:
        return {
            part: [(plain.decode(record), record.score) for record in records]
            for part, records in sets.items()
        }

    found: dict[str, float] = {}
    found["first start"], decoded = timed(decode_all, device)
    found["second start"] = timed(decode_all, device)[0]  # nothing was kept: it decodes again
    patches = [pair for pair in decoded["train"] for _ in range(flags.train_patch_num)]
    random.Random(0).shuffle(patches)
    plain.train(patches[: flags.batch_size])  # warm-up
    some = patches[: limit * flags.batch_size]
    found["training"] = len(some) / timed(lambda: plain.train(some), device)[0]
    for part, name in (("test", "testing koniq-10k"), ("spaq", "testing spaq")):
        images = [image for image, _ in decoded[part][:limit]]
        found[name] = len(images) / timed(functools.partial(plain.test, images), device)[0]
    return found
