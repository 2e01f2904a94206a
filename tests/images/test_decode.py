import os
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torchvision.transforms as T
from helpers import jpeg_bytes, picture
from PIL import Image, ImageOps

from hyperiqa.images import decode as images
from hyperiqa.images.decode import (
    decode,
    fitted_size,
    from_pillow,
    load_image,
    read_header,
    resize_image,
    resized_size,
)


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGB", "a.jpg", {"quality": 90}),
        ("RGB", "progressive.jpg", {"quality": 70, "progressive": True, "subsampling": 2}),
        ("RGB", "a.jpeg", {"quality": 80, "subsampling": 0}),
        ("L", "grey.jpg", {"quality": 90}),
        ("CMYK", "cmyk.jpg", {"quality": 90}),
        ("RGB", "a.png", {}),
        ("L", "grey.png", {}),
        ("LA", "grey_alpha.png", {}),
        ("RGBA", "alpha.png", {}),
        ("P", "palette.png", {}),
        ("1", "bits.png", {}),
        ("RGB", "a.bmp", {}),
        ("RGB", "a.tif", {}),
        ("RGB", "a.jp2", {}),
        ("RGB", "a.webp", {}),
        ("P", "a.gif", {}),
    ],
)
def test_decoding_is_bit_identical_to_pillow(tmp_path, mode, name, options):
    path = tmp_path / name
    Image.fromarray(picture()).convert(mode).save(path, **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    found = decode(path)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert read_header(path) == found.shape[:2]
    assert np.array_equal(decode(path.read_bytes()), expected)
    assert np.array_equal(load_image(path.read_bytes(), "48", 32), load_image(path, "48", 32))


def test_pillow_decodes_alone_to_the_same_pixels(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg_bytes())
    with_torchvision = decode(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "decode_image", None)
    assert np.array_equal(decode(tmp_path / "a.jpg"), with_torchvision)


def test_sixteen_bits_are_divided_by_257(tmp_path):
    values = (np.arange(120 * 90, dtype=np.uint32) * 6 % 65536).astype(np.uint16).reshape(90, 120)
    for name in ("grey16.png", "grey16.tif"):
        Image.fromarray(values).save(tmp_path / name)
        expected = np.rint(values / 257).astype(int)
        assert np.array_equal(decode(tmp_path / name), np.repeat(expected[:, :, None], 3, 2))


@pytest.mark.parametrize("size", [(1024, 768), (500, 333), (300, 401)])
@pytest.mark.parametrize("target", ["384", "512x384", "224"])
def test_resize_is_pillows_within_one_grey_level(size, target):
    image = np.array(Image.fromarray(picture(120, 90)).resize(size, Image.BICUBIC))
    height, width = resized_size(image.shape[0], image.shape[1], target, 1)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR)).astype(
        int
    )
    difference = np.abs(resize_image(image, height, width).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("size", "resize", "least", "expected"),
    [
        ((768, 1024), "384", 224, (384, 512)),  # KonIQ-10k
        ((1024, 768), "384", 224, (512, 384)),
        ((768, 1024), "512x384", 224, (512, 384)),  # the public code: stretched
        ((500, 333), "none", 224, (500, 333)),
        ((100, 150), "none", 224, (224, 336)),
        ((100, 150), "64", 224, (224, 336)),
        ((1, 1), "384", 224, (384, 384)),
        ((3000, 4000), "max1500", 224, (1500, 2000)),
        ((768, 1024), "max768", 224, (768, 1024)),
        ((333, 501), "max768", 224, (333, 501)),
        ((100, 150), "max768", 224, (224, 336)),
    ],
)
def test_sizes_in_the_cache(size, resize, least, expected):
    assert resized_size(*size, resize, least) == expected


def test_shorter_side_is_torchvisions_resize():
    for height, width in ((333, 500), (401, 300), (768, 1024)):
        image = T.Resize(200)(Image.new("RGB", (width, height)))
        assert resized_size(height, width, "200", 1) == (image.height, image.width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_off_by_default_and_then_pillows(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        plain, turned = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(tmp_path / "a.jpg"), plain)
    assert np.array_equal(decode(tmp_path / "a.jpg", exif_rotate=True), turned)
    assert read_header(tmp_path / "a.jpg", exif_rotate=True) == turned.shape[:2]
    assert np.array_equal(load_image(tmp_path / "a.jpg", "none", 32, exif_rotate=True), turned)


def test_transparency_lies_on_white(tmp_path):
    rgba = np.dstack([picture(), np.full((90, 120), 255, np.uint8)])
    rgba[:40, :, 3] = 0
    rgba[40:50, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png").astype(float)
    assert (found[:40] == 255).all() and np.array_equal(found[50:], rgba[50:, :, :3])
    expected = rgba[40:50, :, :3] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(found[40:50] - expected).max() <= 1


def test_a_thin_strip_is_refused_before_it_is_blown_up(tmp_path):
    Image.new("RGB", (20_000, 100)).save(tmp_path / "long.png")
    assert fitted_size(tmp_path / "long.png", "384", 224) == ((384, 76_800), False)
    assert fitted_size(tmp_path / "long.png", "none", 224) == ((224, 44_800), True)
    Image.new("L", (30_000, 2)).save(tmp_path / "strip.png")
    with pytest.raises(
        ValueError, match="absurdly large once resized from 30000x2 to 5760000x384 pixels"
    ):
        fitted_size(tmp_path / "strip.png", "384", 224)
    with pytest.raises(ValueError, match="absurdly large once resized"):
        load_image(tmp_path / "strip.png", "384", 224)


PATTERNS = {
    "a.png": ("RGB", {}),
    "palette.png": ("P", {}),
    "clear.png": ("P", {"transparency": 3}),
    "clears.png": ("P", {"transparency": bytes([0, 90] + [255] * 9)}),
    "clear_grey.png": ("L", {"transparency": 100}),
    "alpha.png": ("RGBA", {}),
    "grey16.png": ("I;16", {"transparency": 25700}),
    "float.tif": ("F", {}),
    # Pillow turns its own maps of uncompressed files wrongly.
    "cmyk.tif": ("CMYK", {"compression": "tiff_lzw"}),
    "bits.png": ("1", {}),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_squares_give_the_pixels_of_the_whole(tmp_path, monkeypatch, name, orientation):
    mode, options = PATTERNS[name]
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(picture()[..., 0].astype(np.float32) / 255)
    else:
        image = Image.fromarray(picture()).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(picture(seed=1)[..., 0]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, **options)
    whole = decode(tmp_path / name, exif_rotate=True)
    assert whole.shape == ((120, 90, 3) if orientation == 6 else (90, 120, 3))
    assert whole.shape[:2] == read_header(tmp_path / name, exif_rotate=True)
    if mode == "CMYK":
        with Image.open(tmp_path / name) as opened:
            assert np.array_equal(whole, np.asarray(ImageOps.exif_transpose(opened.convert("RGB"))))
    monkeypatch.setattr(images, "SQUARE", 37)
    assert np.array_equal(decode(tmp_path / name, exif_rotate=True), whole)


def test_large_images_wait_for_one_another_and_others_never(monkeypatch):
    monkeypatch.setattr(images, "LARGE", 1000)
    active = []
    together = []

    def work(pixels):
        with images.room_for(pixels):
            active.append(pixels)
            together.append([size for size in active if size > 1000])
            time.sleep(0.02)
            active.remove(pixels)

    with ThreadPoolExecutor(8) as pool, images.room_for(1001):
        others = [pool.submit(work, 1000) for _ in range(4)]
        large = [pool.submit(work, 1001 + i) for i in range(4)]
        for job in others:
            job.result(timeout=10)
        assert not any(job.done() for job in large)
    assert len(together) == 8 and max(map(len, together)) == 1
    # One that fails leaves the room too.
    with pytest.raises(ValueError), images.room_for(2000):
        raise ValueError
    work(2000)


MEASURE = """
import resource, sys, threading
from pathlib import Path
from hyperiqa.base.device import keep_freed_memory
from hyperiqa.images.decode import load_image
keep_freed_memory()
threads = [threading.Thread(target=load_image, args=(Path(sys.argv[1]), "384", 224)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "most"),
    [
        ("a.jpg", (10_000, 10_000), 1.5),
        ("a.png", (10_000, 10_000), 2),
        ("bomb.png", (20_000, 19_999), 4),
    ],
)
def test_four_threads_stay_below_4_gib(tmp_path, name, size, most):
    Image.new("RGB", size, "red").save(tmp_path / name)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / name], capture_output=True, cwd=root, check=True
    )
    assert not done.stderr and 0.5 < float(done.stdout) < most


def saved(folder, name, image, **options):
    image.save(folder / name, **options)
    return decode(folder / name)


def grey(image):
    return np.repeat(np.asarray(image)[:, :, None], 3, 2)


@pytest.mark.parametrize(
    ("mode", "clear"),
    [("RGB", (0, 0, 0)), ("L", 0), ("P", 0), ("P", bytes([0] + [255] * 9)), ("I;16", 0)],
)
def test_a_transparent_colour_of_a_png_lies_on_white(tmp_path, mode, clear):
    pixels = picture()[..., 0] // 2 + 100
    pixels[10:30, 20:60] = 0
    hole = pixels == 0
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(pixels)
        image.putpalette([v for level in range(256) for v in (level,) * 3])
    else:
        image = Image.fromarray(pixels).convert(mode)
    found = saved(tmp_path, "a.png", image, transparency=clear)
    assert (found[hole] == 255).all() and np.array_equal(found[~hole], grey(pixels)[~hole])
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(from_pillow(opened), found)


def test_floats_are_0_to_1_and_else_refused(tmp_path):
    pixels = picture()[..., 0]
    found = saved(tmp_path, "a.tif", Image.fromarray(pixels.astype(np.float32) / 255))
    assert np.array_equal(found, grey(pixels))
    for values in (
        pixels.astype(np.float32),
        np.full((9, 9), np.nan, np.float32),
        np.full((9, 9), -0.1, np.float32),
    ):
        with pytest.raises(ValueError, match="floating pixels from .* expected 0 to 1"):
            saved(tmp_path, "b.tif", Image.fromarray(values))


def test_integers_of_unknown_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="32-bit integer pixels, whose range is not known"):
        saved(tmp_path, "a.tif", Image.fromarray(picture()[..., 0].astype(np.int32)))
    with pytest.raises(ValueError, match="grey of 16 bits, 0 as white: expected 8 or 16 bits"):
        saved(
            tmp_path,
            "b.tif",
            Image.fromarray(picture()[..., 0].astype(np.uint16)),
            tiffinfo={262: 0},
        )


def test_sixteen_bits_of_a_pgm_are_divided_by_257(tmp_path):
    values = np.arange(0, 65536, 8, dtype=np.uint16).reshape(64, 128)
    (tmp_path / "a.pgm").write_bytes(b"P5 128 64 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(decode(tmp_path / "a.pgm"), grey(np.rint(values / 257).astype(np.uint8)))


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "P",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "LA",
        "La",
        "PA",
        "RGBX",
        "RGBa",
        "I;16",
        "I;16L",
        "I;16B",
    ],
)
def test_every_mode_gives_pixels_or_a_reason(mode):
    image = Image.new(mode, (40, 30))
    if mode in ("LAB", "La", "I"):
        with pytest.raises(ValueError, match="pixels"):
            from_pillow(image)
    else:
        # Clear, without ink, or (JFIF) Y = 0 with the strongest green.
        blank = {
            "RGBA": 255,
            "LA": 255,
            "PA": 255,
            "RGBa": 255,
            "CMYK": 255,
            "YCbCr": (0, 135, 0),
        }.get(mode, 0)
        assert np.array_equal(from_pillow(image), np.full((30, 40, 3), blank, np.uint8))


@pytest.mark.parametrize("value", [b"6\0\0\0", b"\x09\0\0\0", b"\0\0\0\0"])
def test_an_orientation_that_is_none_is_upright(tmp_path, value):
    kind, count = (2, 2) if value[0] == ord("6") else (3, 1)
    tag = struct.pack("<HHI4s", 0x112, kind, count, value)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + tag + bytes(4)
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    assert read_header(tmp_path / "a.jpg", exif_rotate=True) == (90, 120)
    assert np.array_equal(decode(tmp_path / "a.jpg", exif_rotate=True), decode(tmp_path / "a.jpg"))


def fates(folder):
    """What became of each file of a folder in a process that decodes them all; fails where it crashed."""
    command = [sys.executable, "-W", "ignore", fuzz.__file__, folder]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONPATH": str(root)}, timeout=1200
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    assert done.returncode == 0, f"{done.returncode} at {lines[-1:]}: {done.stderr[-300:]}"
    return lines


def test_no_damaged_file_ends_the_process(tmp_path):
    for suffix in fuzz.SAVED:
        fuzz.write(tmp_path, suffix, 24)
    lines = fates(tmp_path)
    assert len(lines) == 24 * len(fuzz.SAVED)
    assert sum(" bad " in line for line in lines) > 50 < sum(" read " in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", fuzz.SAVED)
def test_no_damaged_file_of_two_thousand_ends_the_process(tmp_path, suffix):
    fuzz.write(tmp_path, suffix, 2000, seed=1)
    lines = fates(tmp_path)
    assert len(lines) == 2000 and sum(" bad " in line for line in lines) > 50 < sum(
        " read " in line for line in lines
    )
