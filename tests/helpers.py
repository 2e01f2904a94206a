"""Tiny real data sets, weights and pictures that the tests share."""

import csv
import io
import json
import math
import zlib
from pathlib import Path

import numpy as np
import openpyxl
import torch
from PIL import Image

from hyperiqa.model import checkpoints, factory


def write_images(
    folder: Path, names: list[str], size: tuple[int, int] = (96, 72), seed: int = 0
) -> None:
    """Noise over a gradient whose strength falls from the first name to the last; size = (width, height)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[1], : size[0]]
    for k, name in enumerate(names):
        base = 128 + 60 * np.sin(x / (5 + k % 3)) * np.cos(y / 7)
        noise = rng.normal(0, 60 * (1 - k / len(names)), (size[1], size[0], 3))
        pixels = np.clip(base[:, :, None] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=95)


def write_koniq(
    root: Path,
    train: int = 12,
    test: int = 6,
    size: tuple[int, int] = (96, 72),
    votes: bool = False,
) -> Path:
    """KonIQ-10k's layout with images in train/ and test/ and the JSON lists.

    votes: whether the images have votes, with other standard deviations for each.
    """
    names = {
        part: [f"{part}_{i}.jpg" for i in range(n)]
        for part, n in (("train", train), ("test", test))
    }
    with (write_dir(root) / "koniq10k_scores_and_distributions.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        extra = ["SD", "c_total"] if votes else []
        writer.writerow(["image_name", "c1", "MOS", "MOS_zscore", *extra])
        for part in names.values():
            for i, name in enumerate(part):
                score = score_of(i, len(part))
                row = [score / 20, score, 0.5 + 0.1 * (i % 4), 100] if votes else [3.0, score]
                writer.writerow([name, 0, *row])
    for seed, (part, listed) in enumerate(names.items()):
        write_images(root / part, listed, size, seed)
        entries = [{"image": f"koniq_{part}/{name}", "score": -1.0} for name in listed]
        (root / f"koniq_{part}.json").write_text(json.dumps(entries))
    return root


def write_spaq(root: Path, number: int = 5) -> Path:
    names = [f"spaq_{i}.jpg" for i in range(number)]
    write_images(root, names, (80, 110), seed=9)
    entries = [
        {"image": f"spaq_test/{name}", "score": score_of(i, number)} for i, name in enumerate(names)
    ]
    (root / "spaq_test.json").write_text(json.dumps(entries))
    return root


def write_dir(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def write_book(path, **sheets):
    """An .xlsx file with these sheets, rows of cells each."""
    write_dir(path.parent)
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def cells(names):
    """A MATLAB cell array n×1 of text."""
    return np.array([[name] for name in names], dtype=object)


def score_of(i: int, n: int) -> float:
    return round(10 + 80 * i / n, 4)


def fill_by_recipe(model: torch.nn.Module) -> torch.nn.Module:
    """The golden figures' weights: every floating tensor from a generator seeded with its name."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(recipe_tensor(name, tensor.shape))
    return model


def recipe_tensor(name: str, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    draw = torch.randn(shape, generator=generator)
    if name.endswith(("running_mean", "running_var")):
        return torch.full_like(draw, float(name.endswith("running_var")))
    if draw.ndim > 1:
        return draw * math.sqrt(1 / draw[0].numel())
    return torch.ones_like(draw) if name.endswith("weight") else 0.01 * draw


def recipe_images(number: int, seed: int) -> torch.Tensor:
    return torch.randn(number, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def picture(width=120, height=90, seed=0, channels=3):
    rng = np.random.default_rng(seed)
    smooth = np.kron(
        rng.integers(0, 256, (height // 10, width // 10, channels)), np.ones((10, 10, 1))
    )
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


class Done:
    """What a tool left: exit code and what it printed."""

    def __init__(self, code, stdout, stderr):
        self.returncode, self.stdout, self.stderr = code, stdout, stderr

    @property
    def last_words(self):
        """What stays on the terminal when the progress bars have gone."""
        return self.stderr.rpartition("\r")[2]


def save_random_model(path, description, spread=1, seed=0):
    """A checkpoint of random weights whose scores lie around 50; `spread` times what they differ by. Returns its path."""
    torch.manual_seed(seed)
    net = factory.build(description)
    with torch.no_grad():
        net.fc5b_fc.bias += 50
        net.fc5w_fc.weight *= spread
    checkpoints.save(path, checkpoints.portable_state(net, description))
    return path


def save_teacher(path):
    """A random model of another encoder, scale and direction than those that the tests train. Returns its path."""
    about = {
        "backbone": "test_vit",
        "fusion": "concat",
        "patch_size": 64,
        "resize": "72",
        "exif_rotate": False,
        "dataset": "kadid-10k",
        "score_range": [1.0, 5.0],
        "higher_is_better": False,
        "test_crop": "center",
        "test_patch_num": 1,
        "mean": [0.5] * 3,
        "std": [0.3] * 3,
    }
    return save_random_model(path, about)


def jpeg_bytes():
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "JPEG")
    return data.getvalue()


def huge_header():
    """A BMP header that claims 100,000 x 100,000 pixels."""
    head = (
        b"BM"
        + (54).to_bytes(4, "little")
        + bytes(4)
        + (54).to_bytes(4, "little")
        + (40).to_bytes(4, "little")
    )
    return (
        head
        + (100_000).to_bytes(4, "little") * 2
        + (1).to_bytes(2, "little")
        + (24).to_bytes(2, "little")
        + bytes(24)
    )
