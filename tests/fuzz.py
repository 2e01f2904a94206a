"""Damages files by seed and has each decoded, in a process that may crash: `python fuzz.py FOLDER` says each one's fate.

Standard output: a line `number what` per file of FOLDER, flushed before the next is begun, so that a crash is found."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

# Format -> the modes and options that it is saved with; what is offered in `reading.images.FORMATS`.
SAVED = {
    "jpg": [
        ("RGB", {"quality": 90}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"progressive": True, "quality": 60}),
    ],
    "png": [
        ("RGB", {}),
        ("L", {}),
        ("P", {}),
        ("RGBA", {}),
        ("I;16", {}),
        ("1", {}),
        ("RGB", {"transparency": (9, 9, 9)}),
    ],
    "apng": [("RGB", {"format": "PNG", "save_all": True})],
    "bmp": [("RGB", {}), ("L", {}), ("P", {}), ("1", {})],
    "dib": [("RGB", {})],
    "gif": [("P", {}), ("L", {}), ("RGB", {})],
    "tif": [
        ("RGB", {"compression": c})
        for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    + [("I;16", {}), ("F", {}), ("1", {"compression": "group4"}), ("CMYK", {}), ("RGBA", {})],
    "jp2": [
        ("RGB", {}),
        ("L", {}),
        ("RGB", {"quality_mode": "rates", "quality_layers": [20], "irreversible": True}),
    ],
    "j2k": [("RGB", {}), ("RGBA", {})],
    "webp": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})],
    "avif": [("RGB", {}), ("RGBA", {})],
    "ppm": [("RGB", {})],
    "pgm": [("L", {})],
    "pbm": [("1", {})],
    "tga": [("RGB", {}), ("RGB", {"compression": "tga_rle"}), ("L", {}), ("P", {})],
    "mpo": [("RGB", {"save_all": True})],
}


def sound(suffix: str, number: int, side: int = 40) -> bytes:
    """A sound file of this format, of its mode `number`: a smooth picture with an EXIF orientation where it can."""
    mode, options = SAVED[suffix][number % len(SAVED[suffix])]
    y, x = np.mgrid[:side, : side + 8]
    pixels = np.stack(
        [127 + 120 * np.sin((a * x + b * y) / 9) for a, b in ((1, 0), (0, 1), (1, 2))], 2
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((pixels[..., 0] * 257).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray((pixels[..., 0] / 255).astype(np.float32))
    else:
        image = image.convert(mode)
    more = dict(options)
    if more.get("save_all"):
        more["append_images"] = [image.rotate(90), image.rotate(180)]
    if suffix in ("jpg", "png", "webp", "avif", "tif") and mode not in ("F",):
        exif = Image.Exif()
        exif[0x0112] = 6
        more["exif"] = exif
    form = {
        "jpg": "JPEG",
        "tif": "TIFF",
        "jp2": "JPEG2000",
        "j2k": "JPEG2000",
        "pgm": "PPM",
        "pbm": "PPM",
    }
    image.save(file := io.BytesIO(), **{"format": form.get(suffix, suffix.upper()), **more})
    return file.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one kind of damage: flipped bits, random, zeroed, doubled, lost or swapped bytes, or an end."""
    found = bytearray(data)
    # Half of all damage goes where the headers are.
    reach = len(found) if rng.random() < 0.5 else min(len(found), 200)
    at, length = int(rng.integers(reach)), int(rng.integers(1, 1 + len(found) // 2))
    match rng.integers(8):
        case 0:
            found[at] ^= 1 << int(rng.integers(8))
        case 1:
            for place in rng.integers(reach, size=int(rng.integers(2, 12))):
                found[place] = int(rng.integers(256))
        case 2:
            found[at : at + length] = bytes(len(found[at : at + length]))
        case 3:
            found[at:at] = found[at : at + length]
        case 4:
            del found[at : at + int(rng.integers(1, 9))]
        case 5:
            del found[at:]
        case 6:
            found[at : at + 4] = rng.choice([0, 1, 0x7F, 0x80, 0xFF], 4).astype(np.uint8).tobytes()
        case 7:
            found[at : at + length] = (
                rng.integers(256, size=len(found[at : at + length])).astype(np.uint8).tobytes()
            )
    return bytes(found)


def write(folder: Path, suffix: str, count: int, seed: int = 0) -> None:
    """`count` damaged files of a format, FOLDER/000000.suffix …, the same for the same seed."""
    rng = np.random.default_rng([seed, *suffix.encode()])
    files = [sound(suffix, number) for number in range(len(SAVED[suffix]))]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:06d}.{suffix}").write_bytes(damaged(files[i % len(files)], rng))


def main() -> None:
    from hyperiqa.images.decode import load_image

    for path in sorted(Path(sys.argv[1]).iterdir()):
        print(path.name, end=" ", flush=True)
        for turned in (False, True):
            try:
                pixels = load_image(path, "none", 16, exif_rotate=turned)
                said = f"read {pixels.shape[0]}x{pixels.shape[1]}"
            except ValueError as problem:
                said = f"bad {problem}"
        print(said, flush=True)


if __name__ == "__main__":
    main()
