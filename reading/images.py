"""Image files -> uint8 pixels, and their resizing: what a patch is cut from, the same for training and for scoring."""

import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.cli import parse_resize

try:
    from torchvision.io import ImageReadMode, decode_image
except ImportError:  # deprecated in torchvision 0.29: without it Pillow decodes, to the same pixels but slower
    decode_image = None

TORCHVISION_READS = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "I;16")}
# More pixels than any camera's: a file that claims them is broken, or meant to fill the memory.
MAX_PIXELS = 400_000_000
Image.MAX_IMAGE_PIXELS = None  # our own limit, above, is checked before any pixel is decoded


def read_header(path: Path, exif_rotate: bool = False) -> tuple[int, int]:
    """(height, width) of an image file without decoding it. Raises ValueError with the reason."""
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            width, height = image.size
            if exif_rotate and _orientation(image) >= 5:
                width, height = height, width
    except UnidentifiedImageError:
        raise ValueError("not an image that Pillow can read") from None
    except OSError as problem:
        raise ValueError(problem.strerror or str(problem)) from None
    except SyntaxError as problem:
        raise ValueError(str(problem)) from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"absurdly large: {width}x{height} pixels")
    if width * height == 0:
        raise ValueError(f"no pixels: {width}x{height}")
    return height, width


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; from 5 on, height and width change places."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def from_pillow(image: Image.Image, exif_rotate: bool = False) -> np.ndarray:
    """A PIL image of any mode as RGB uint8 (H, W, 3), as a viewer shows it; of an animation its current frame."""
    turned = ImageOps.exif_transpose(image) if exif_rotate else image
    if turned.mode.startswith(("I", "F")):  # 16-bit grey, which convert("RGB") would clip
        grey = np.asarray(turned, np.float64)
        grey = np.clip(np.rint(grey / 257 if turned.mode.startswith("I") else grey), 0, 255)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if turned.has_transparency_data:  # on white, as viewers show it: what hides below is arbitrary
        rgba = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(turned.convert("RGB"))


def _decode_pillow(path: Path, exif_rotate: bool) -> np.ndarray:
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        return from_pillow(image, exif_rotate)


def decode(path: Path, exif_rotate: bool = False) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), as a viewer shows it. Raises ValueError with the reason.
    16-bit values are divided by 257, transparency lies on white. JPEG and PNG go through torchvision,
    bit-identical to Pillow and faster; other formats, and what it has no plain RGB for (CMYK, palettes,
    transparency), go through Pillow. exif_rotate: turn as the file's EXIF orientation says."""
    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            upright = not exif_rotate or _orientation(image) == 1
        if decode_image and upright and (kind, mode) in TORCHVISION_READS:
            data = torch.from_numpy(np.fromfile(path, np.uint8))
            pixels = decode_image(data, ImageReadMode.UNCHANGED)
            if pixels.dtype == torch.uint16:
                pixels = ((pixels.int() + 128) // 257).to(torch.uint8)
            if pixels.shape[0] in (1, 3):
                return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        return _decode_pillow(path, exif_rotate)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        # torchvision says where in its sources it stopped; its last words are the reason.
        raise ValueError(str(problem).splitlines()[0].rpartition(", ")[2] or type(problem).__name__) from None


def resized_size(height: int, width: int, resize: str, min_side: int) -> tuple[int, int]:
    """(height, width) that an image has in the cache: `resize` as in `--resize`, then at least `min_side`."""
    target = parse_resize(resize)
    if isinstance(target, tuple):
        height, width = target
    elif target is not None:
        short = min(height, width)
        height, width = (max(1, int(target * side / short)) for side in (height, width))
    if min(height, width) < min_side:
        short = min(height, width)
        height, width = (max(min_side, int(min_side * side / short)) for side in (height, width))
    return height, width


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (height, width, 3), bilinear with antialiasing, as Pillow's BILINEAR."""
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return TF.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).contiguous().numpy()


def fitted_size(path: Path, resize: str, min_side: int, exif_rotate: bool = False) -> tuple[tuple[int, int], bool]:
    """What an image file becomes, before any pixel is decoded: ((height, width), whether it is smaller than a patch).
    Raises ValueError where the file is no image, or would be absurdly large once resized (a long thin strip)."""
    header = read_header(path, exif_rotate)
    height, width = resized_size(*header, resize, min_side)
    if height * width > MAX_PIXELS:
        raise ValueError(f"absurdly large once resized from {header[1]}x{header[0]} to {width}x{height} pixels")
    return (height, width), (height, width) != resized_size(*header, resize, 1)


def load_image(path: Path, resize: str, min_side: int, exif_rotate: bool = False) -> np.ndarray:
    """An image file as it would lie in the cache: uint8 (H, W, 3). Raises ValueError with the reason."""
    size, _ = fitted_size(path, resize, min_side, exif_rotate)
    return resize_image(decode(path, exif_rotate), *size)
