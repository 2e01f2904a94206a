"""Image files -> uint8 pixels, and their resizing: what a patch is cut from, the same for training and for scoring."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import ExifTags, Image, UnidentifiedImageError

from hyperiqa.base.command_line import parse_resize

try:
    from torchvision.io import ImageReadMode, decode_image
except (
    ImportError
):  # deprecated in torchvision 0.29: without it Pillow decodes, to the same pixels but slower
    decode_image = None

# What is read here; each is fuzzed by tests/reading. Pillow knows more, some by programs of others (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "WEBP", "AVIF", "PPM", "TGA")
# More pixels than any camera's: a file that claims them is broken, or meant to fill the memory.
MAX_PIXELS = 400_000_000
# EXIF orientation -> what turns the image upright (CIPA DC-008).
ORIENTATIONS = {
    n: getattr(Image.Transpose, name)
    for n, name in enumerate(
        "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(),
        2,
    )
}
Image.MAX_IMAGE_PIXELS = None  # our own limit, above, is checked before any pixel is decoded


def _open(path: Path) -> Image.Image:
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    return Image.open(path, formats=FORMATS)


@contextmanager
def _decoding() -> Iterator[None]:
    """Decoders meet a damaged file with any exception: each becomes a ValueError with the reason."""
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
        # torchvision says where in its sources it stopped; its last words are the reason.
        raise ValueError(
            reason.rpartition(", ")[2] if isinstance(problem, RuntimeError) else reason
        ) from None


def read_header(path: Path, exif_rotate: bool = False) -> tuple[int, int]:
    """(height, width) of an image file without decoding it. Raises ValueError with the reason."""
    with _decoding(), _open(path) as image:
        width, height = image.size
        if exif_rotate and _orientation(image) >= 5:
            width, height = height, width
    if width * height > MAX_PIXELS:
        raise ValueError(f"absurdly large: {width}x{height} pixels")
    if width * height == 0:
        raise ValueError(f"no pixels: {width}x{height}")
    return height, width


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright, also where it is none of the standard's) to 8; from 5 on, the sides are swapped."""
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def from_pillow(image: Image.Image, exif_rotate: bool = False) -> np.ndarray:
    """A PIL image as RGB uint8 (H, W, 3), as a viewer shows it; of an animation its current frame.
    16-bit grey is divided by 257, floats are 0..1, transparency lies on white, and everything else is RGB as Pillow
    converts it. Raises ValueError for pixels whose range nothing says: other floats, integers of 32 bits, LAB."""
    with _decoding():
        turn = ORIENTATIONS.get(_orientation(image)) if exif_rotate else None
        turned = image if turn is None else image.transpose(turn)
        if turned.mode.startswith(("I", "F")):
            return np.repeat(_grey(turned, image)[:, :, None], 3, axis=2)
        if turned.mode in ("LAB", "La"):
            raise ValueError(f"pixels of mode {turned.mode} are not read here")
        if (
            turned.has_transparency_data
        ):  # on white, as viewers show it: what hides below is arbitrary
            rgba = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.array(turned.convert("RGB"))


def _grey(turned: Image.Image, image: Image.Image) -> np.ndarray:
    """Grey pixels of more than 8 bits as uint8 (H, W); `image` is what was opened."""
    grey, mode = np.asarray(turned), turned.mode
    if mode == "F":
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(
                f"floating pixels from {grey.min():g} to {grey.max():g}: expected 0 to 1"
            )
        return np.rint(grey * 255.0).astype(np.uint8)
    if mode == "I" and image.format != "PPM":  # whose 16 bits Pillow reads as 32
        raise ValueError("32-bit integer pixels, whose range is not known: expected 8 or 16 bits")
    bits, is_white = (
        getattr(image, "tag_v2", {}).get(tag, usual) for tag, usual in ((258, (16,)), (262, 1))
    )
    if tuple(bits) != (16,) or is_white == 0:
        raise ValueError(
            f"grey of {bits[0]} bits{', 0 as white' if is_white == 0 else ''}: expected 8 or 16 bits"
        )
    clear = image.info.get("transparency")
    grey = np.where(grey == clear, 65535, grey) if isinstance(clear, int) else grey
    return np.clip(np.rint(grey / 257), 0, 255).astype(np.uint8)


def decode(path: Path, exif_rotate: bool = False) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), by the rules of `from_pillow`. Raises ValueError with the reason.
    JPEG goes through torchvision, bit-identical to Pillow and faster. PNG does not: damaged data makes its decoder end
    the process. exif_rotate: turn as the file's EXIF orientation says."""
    with _decoding(), _open(path) as image:
        upright = not exif_rotate or _orientation(image) == 1
        if decode_image and upright and image.format == "JPEG" and image.mode in ("RGB", "L"):
            data = torch.from_numpy(np.fromfile(path, np.uint8))
            return decode_image(data, ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()
        return from_pillow(image, exif_rotate)


def resized_size(height: int, width: int, resize: str, min_side: int) -> tuple[int, int]:
    """(height, width) that an image has in the cache: `resize` as in `--resize`, then at least `min_side`."""
    target = parse_resize(resize)
    if isinstance(target, tuple):
        height, width = target
    elif target is not None:
        short = min(height, width)
        height, width = (max(1, int(target * side / short)) for side in (height, width))
    if (short := min(height, width)) < min_side:
        height, width = (max(min_side, int(min_side * side / short)) for side in (height, width))
    return height, width


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (height, width, 3), bilinear with antialiasing, as Pillow's BILINEAR."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return TF.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).contiguous().numpy()


def fitted_size(
    path: Path, resize: str, min_side: int, exif_rotate: bool = False
) -> tuple[tuple[int, int], bool]:
    """What an image file becomes, before any pixel is decoded: ((height, width), whether it is smaller than a patch).
    Raises ValueError where the file is no image, or would be absurdly large once resized (a long thin strip)."""
    header = read_header(path, exif_rotate)
    height, width = resized_size(*header, resize, min_side)
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"absurdly large once resized from {header[1]}x{header[0]} to {width}x{height} pixels"
        )
    return (height, width), (height, width) != resized_size(*header, resize, 1)


def load_image(path: Path, resize: str, min_side: int, exif_rotate: bool = False) -> np.ndarray:
    """An image file as it would lie in the cache: uint8 (H, W, 3). Raises ValueError with the reason."""
    size, _ = fitted_size(path, resize, min_side, exif_rotate)
    return resize_image(decode(path, exif_rotate), *size)
