"""Image files as uint8 pixels, and their resizing, the same for training and for scoring."""

import io
import itertools
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import ExifTags, Image, UnidentifiedImageError

from hyperiqa.base import command_line, device

# Deprecated in torchvision 0.29: without it Pillow decodes, to the same pixels but slower.
try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:
    decode_image = None

# The path of a file, or its bytes where it lies in a shard or a table.
ImageFile = Path | bytes
# The formats that are read, each fuzzed by tests/images. Pillow knows more formats, and reads some
# of them (EPS) through external programs.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "WEBP", "AVIF", "PPM", "TGA")
# More pixels than any camera's: a file that claims them is broken, or meant to fill the memory.
MAX_PIXELS = 400_000_000
# Pillow's own limit is off, since every image is checked against MAX_PIXELS before it is decoded.
Image.MAX_IMAGE_PIXELS = None
# Images with more pixels, before and after their resize together, are decoded one after another:
# meanwhile each pixel takes 3 to 20 bytes. Ordinary photographs never wait.
LARGE = 32_000_000
_one_large = threading.Lock()
# The side of the squares in which one of Pillow's images is turned into an array.
SQUARE = 2048


@contextmanager
def room_for(pixels: int) -> Iterator[None]:
    """Before work on an image with so many pixels: wait until no other thread has a large one."""
    with _one_large if pixels > LARGE else nullcontext():
        if pixels > LARGE:
            # Memory that malloc keeps for one thread is missing for the image of another thread.
            device.return_freed_memory()
        yield


def _open(source: ImageFile) -> Image.Image:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=FORMATS)


@contextmanager
def _decoding() -> Iterator[None]:
    # A damaged file may cause any exception. It becomes a ValueError with the reason.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise ValueError("not an image of a format that is read here") from None
    except OSError as problem:
        raise ValueError(problem.strerror or str(problem)) from None
    except Exception as problem:
        reason = next(iter(str(problem).splitlines()), "") or type(problem).__name__
        # torchvision says where in its sources it stopped, and then the reason.
        if isinstance(problem, RuntimeError):
            reason = reason.rpartition(", ")[2]
        raise ValueError(reason) from None


def read_header(source: ImageFile, exif_rotate: bool = False) -> tuple[int, int]:
    """(height, width) of an image file, without decoding it. Raises ValueError with the reason."""
    with _decoding(), _open(source) as image:
        width, height = image.size
        # From orientation 5 on, the sides are swapped.
        if exif_rotate and _orientation(image) >= 5:
            width, height = height, width
    if width * height > MAX_PIXELS:
        raise ValueError(f"absurdly large: {width}x{height} pixels")
    if width * height == 0:
        raise ValueError(f"no pixels: {width}x{height}")
    return height, width


def _orientation(image: Image.Image) -> int:
    # From 1 to 8, and 1 (upright) if the file has none of the standard's.
    # Pillow itself turns a TIFF when it loads the pixels.
    if image.format == "TIFF":
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def from_pillow(image: Image.Image, exif_rotate: bool = False) -> np.ndarray:
    """A PIL image, or the current frame of an animation, as RGB uint8 (H, W, 3).

    16-bit grey is divided by 257, floats are 0 to 1, transparent pixels are laid on white, and
    Pillow converts every other mode to RGB. Raises ValueError for pixels with an unknown range:
    other floats, 32-bit integers and LAB.

    exif_rotate: whether to turn the image as its EXIF orientation says.
    """
    with _decoding():
        if image.mode in ("LAB", "La"):
            raise ValueError(f"pixels of mode {image.mode} are not read here")
        orientation = _orientation(image) if exif_rotate else 1
        image.load()
        width, height = image.size
        pixels = np.empty((height, width, 3), np.uint8)
        # A conversion copies its image several times. With small squares, the copies stay small.
        for top, left in itertools.product(range(0, height, SQUARE), range(0, width, SQUARE)):
            box = (left, top, min(left + SQUARE, width), min(top + SQUARE, height))
            square = image if box == (0, 0, width, height) else image.crop(box)
            pixels[top : top + SQUARE, left : left + SQUARE] = _as_rgb(square, image)
        return _upright(pixels, orientation)


def _upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    # The orientations are those of CIPA DC-008.
    down = -1 if orientation in (3, 4, 6, 7) else 1
    right = -1 if orientation in (2, 3, 7, 8) else 1
    turned = stored[::down, ::right]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if orientation >= 5 else turned)


def _as_rgb(square: Image.Image, original: Image.Image) -> np.ndarray:
    # Returns uint8: RGB (H, W, 3) or grey (H, W, 1). The modes I, I;16, … and F have more than 8
    # bits.
    if square.mode.startswith(("I", "F")):
        return _grey_as_uint8(square, original)[:, :, None]
    # On white, as viewers show it: the colour of a transparent pixel is arbitrary.
    if original.has_transparency_data:
        rgba = square.convert("RGBA")
        square = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(square if square.mode == "RGB" else square.convert("RGB"))


def _grey_as_uint8(square: Image.Image, original: Image.Image) -> np.ndarray:
    """Grey pixels of more than 8 bits as uint8 (H, W).

    square: the part of the image whose pixels count.
    original: the image as opened, which alone has the format and the tags of the file.
    """
    grey = np.asarray(square)
    if square.mode == "F":
        # The condition is negated so that a nan is refused too.
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(
                f"floating pixels from {grey.min():g} to {grey.max():g}: expected 0 to 1"
            )
        return np.rint(grey * 255.0).astype(np.uint8)
    # Pillow reads the 16 bits of a PPM as 32 bits.
    if square.mode == "I" and original.format != "PPM":
        raise ValueError("32-bit integer pixels, whose range is not known: expected 8 or 16 bits")
    # Only a TIFF has tags. Pillow opens grey of 12 bits in the same mode as grey of 16 bits.
    tags = getattr(original, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation, 1) == 0
    if tuple(bits) != (16,) or white_is_zero:
        raise ValueError(
            f"grey of {bits[0]} bits{', 0 as white' if white_is_zero else ''}: "
            "expected 8 or 16 bits"
        )
    # A PNG may name one grey value that is transparent.
    transparent = original.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(grey == transparent, 65535, grey)
    return np.clip(np.rint(grey / 257), 0, 255).astype(np.uint8)


def decode(source: ImageFile, exif_rotate: bool = False) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), by the rules of `from_pillow`.

    JPEG is decoded by torchvision, bit-identical to Pillow and faster. PNG is not, because damaged
    data makes torchvision's decoder end the process. Raises ValueError with the reason.

    exif_rotate: turn the image as the file's EXIF orientation says.
    """
    return decode_and_resize(source, (), exif_rotate)[0]


def decode_and_resize(
    source: ImageFile, size: Sequence[int], exif_rotate: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The image of a file as `decode` returns it, and resized to `size`.

    size: (height, width), or () to leave it as it is. Large images wait for one another, even in
    different threads. Raises what `decode` raises.
    """
    with (
        _decoding(),
        _open(source) as opened,
        room_for(opened.width * opened.height + math.prod(size)),
    ):
        image = _decoded(source, opened, exif_rotate)
        # This frees Pillow's own pixels before another thread takes as many.
        opened.close()
        return image, resize_image(image, *size) if size else image


def _decoded(source: ImageFile, opened: Image.Image, exif_rotate: bool) -> np.ndarray:
    upright = not exif_rotate or _orientation(opened) == 1
    if decode_image and upright and opened.format == "JPEG" and opened.mode in ("RGB", "L"):
        # A copy, as torch takes no bytes that it could not write to.
        file = bytearray(source) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
        data = torch.frombuffer(file, dtype=torch.uint8)
        return decode_image(data, ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()
    return from_pillow(opened, exif_rotate)


def resized_size(height: int, width: int, resize: str, min_side: int) -> tuple[int, int]:
    """(height, width) of an image in the cache.

    resize: as in `--resize`.
    min_side: the shorter side of an image that must be scaled up because it is smaller.
    """
    target = command_line.parse_resize(resize)
    if isinstance(target, tuple):
        height, width = target
    elif target is not None:
        if resize.startswith("max"):
            target = min(target, height, width)
        height, width = _scaled_to_shorter_side(height, width, target)
    if min(height, width) < min_side:
        height, width = _scaled_to_shorter_side(height, width, min_side)
    return height, width


def _scaled_to_shorter_side(height: int, width: int, target: int) -> tuple[int, int]:
    # The longer side is rounded down, as torchvision's Resize does.
    shorter = min(height, width)
    return int(target * height / shorter), int(target * width / shorter)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) to (height, width, 3), bilinear with antialiasing as in Pillow."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return TF.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).contiguous().numpy()


def fitted_size(
    source: ImageFile, resize: str, min_side: int, exif_rotate: bool = False
) -> tuple[tuple[int, int], bool]:
    """The size of an image file in the cache, from its header alone.

    Returns ((height, width), whether the image had to be scaled up to `min_side`). Raises
    ValueError if the file is no image, or a thin strip that would be absurdly large once resized.
    """
    original_height, original_width = read_header(source, exif_rotate)
    height, width = resized_size(original_height, original_width, resize, min_side)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"absurdly large once resized from {original_width}x{original_height} "
            f"to {width}x{height} pixels"
        )
    is_upscaled = (height, width) != resized_size(
        original_height, original_width, resize, min_side=1
    )
    return (height, width), is_upscaled


def load_image(
    source: ImageFile, resize: str, min_side: int, exif_rotate: bool = False
) -> np.ndarray:
    """An image file as it is in the cache: uint8 (H, W, 3). Raises ValueError with the reason."""
    size, _ = fitted_size(source, resize, min_side, exif_rotate)
    return decode_and_resize(source, size, exif_rotate)[1]
