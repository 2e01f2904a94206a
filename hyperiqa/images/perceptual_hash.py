"""Perceptual hashes of images, and pairs of images that look alike."""

from collections.abc import Sequence

import numpy as np
import scipy.fft

from hyperiqa.images.decode import resize_image


def perceptual_hash(image: np.ndarray) -> str:
    """A perceptual hash of RGB uint8 (H, W, 3), 16 hexadecimal digits: the signs of the 63 lowest frequencies, but for
    the mean, of its 32 x 32 grey version (DCT, after Zauner, Implementation and benchmarking of perceptual image hash
    functions, 2010). Copies that were compressed, resized, brightened or blurred differ in few bits."""
    grey = resize_image(image, 32, 32) @ np.array([0.299, 0.587, 0.114])
    signs = scipy.fft.dctn(grey, norm="ortho")[:8, :8] > 1e-9
    signs[0, 0] = False
    return np.packbits(signs).tobytes().hex()


def near_duplicates(
    ours: Sequence[str], theirs: Sequence[str], bits: int = 6
) -> list[tuple[int, int]]:
    """Pairs (i, j) of looks that differ in few bits, mirrored or not; an empty look is like no other. How many copies
    6 bits find is in docs/using_models.md."""
    mirrored, found = np.where(np.arange(64) % 2 == 1, -1, 1).astype(np.float32), []
    one, other = (_signs(looks) for looks in (ours, theirs))
    for start in range(0, len(one), 1024):
        part = one[start : start + 1024]
        agreement = np.maximum(part @ other.T, (part * mirrored) @ other.T)
        found += [(start + int(i), int(j)) for i, j in np.argwhere(agreement >= 64 - 2 * bits)]
    return found


def _signs(looks: Sequence[str]) -> np.ndarray:
    """(N, 64) of -1 and 1, of 0 for an empty look."""
    known = np.array([bool(each) for each in looks])
    codes = np.frombuffer(
        bytes.fromhex("".join(each or "0" * 16 for each in looks)), np.uint8
    ).reshape(-1, 8)
    return (np.unpackbits(codes, axis=1) * np.float32(2) - 1) * known.reshape(-1, 1)
