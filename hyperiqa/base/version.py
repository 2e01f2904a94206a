"""The version of this program, and of the packages that its figures depend on."""

import platform
import subprocess
from importlib import metadata

from hyperiqa.base.files import CHECKOUT, IS_CHECKOUT

VERSION = "0.8.0"


def git(*words: str) -> str | None:
    """The output of a git command about this program's own files; None outside a checkout."""
    # An installed package may be inside another project's repository, which must not answer for it.
    if not IS_CHECKOUT:
        return None
    try:
        return subprocess.check_output(
            ["git", "-C", str(CHECKOUT), *words], text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """The versions of this program and of the packages that figures depend on, and the commit.

    The commit is `unknown` outside a checkout.
    """
    return {
        "hyperiqa": VERSION,
        "python": platform.python_version(),
        **{
            name: metadata.version(name)
            for name in ("torch", "torchvision", "timm", "numpy", "scipy", "pillow")
        },
        "commit": git("rev-parse", "HEAD") or "unknown",
    }
