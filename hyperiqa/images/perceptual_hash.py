"""Perceptual hashes of images, and pairs of images that look alike."""

from collections.abc import Sequence

import numpy as np
import scipy.fft

from hyperiqa.images.decode import resize_image

HASH_BITS = 64


def perceptual_hash(image: np.ndarray) -> str:
    """The perceptual hash of RGB uint8 (H, W, 3), as 16 hexadecimal digits.

    The bits are the signs of the 63 lowest frequencies, without the mean, of the image as 32 x 32
    grey pixels (DCT, after Zauner, Implementation and benchmarking of perceptual image hash
    functions, 2010). Copies that were compressed, resized, brightened or blurred differ in few
    bits.
    """
    # The luminance of ITU-R BT.601.
    grey = resize_image(image, 32, 32) @ np.array([0.299, 0.587, 0.114])
    # Above rounding errors, so that a frequency that is zero has the same sign everywhere.
    signs = scipy.fft.dctn(grey, norm="ortho")[:8, :8] > 1e-9
    signs[0, 0] = False
    return np.packbits(signs).tobytes().hex()


def near_duplicates(
    hashes_a: Sequence[str], hashes_b: Sequence[str], bits: int = 6
) -> list[tuple[int, int]]:
    """Pairs (i, j) of hashes that differ in at most `bits` bits, mirrored or not.

    An empty hash matches nothing. docs/using_models.md says how many copies 6 bits detect.
    """
    signs_a = _signs(hashes_a)
    signs_b = _signs(hashes_b)
    # Mirroring an image changes the sign of its odd horizontal frequencies.
    mirror = np.where(np.arange(HASH_BITS) % 2 == 1, -1, 1).astype(np.float32)
    pairs = []
    # In chunks, which bounds the memory of the table of agreements.
    for start in range(0, len(signs_a), 1024):
        chunk = signs_a[start : start + 1024]
        # The dot product of two hashes: bits that agree minus bits that differ.
        agreement = np.maximum(chunk @ signs_b.T, (chunk * mirror) @ signs_b.T)
        pairs += [
            (start + i, j) for i, j in np.argwhere(agreement >= HASH_BITS - 2 * bits).tolist()
        ]
    return pairs


def _signs(hashes: Sequence[str]) -> np.ndarray:
    # The bits of the hashes as -1 and 1, (N, 64) float32; a row of 0 for an empty hash.
    digits = "".join(text or "0" * 16 for text in hashes)
    codes = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 8)
    signs = np.unpackbits(codes, axis=1) * np.float32(2) - 1
    is_known = np.array([bool(text) for text in hashes])
    return signs * is_known.reshape(-1, 1)
