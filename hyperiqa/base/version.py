"""The version of this program, and of what its figures depend on."""

import platform
import subprocess
from importlib import metadata

from hyperiqa.base.files import CHECKOUT, IS_CHECKOUT

VERSION = "0.8.0"


def git(*words: str) -> str | None:
    """What git says of this program's own files; None where they are no checkout."""
    if not IS_CHECKOUT:  # a repository that site-packages happens to lie in is another project's
        return None
    try:
        command = ["git", "-C", str(CHECKOUT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str:
    """The git commit of this program, `unknown` outside a checkout."""
    return git("rev-parse", "HEAD") or "unknown"


def versions() -> dict[str, str]:
    """Versions of this program and of what figures depend on, and the git commit (`unknown` outside a checkout)."""
    found = {
        name: metadata.version(name)
        for name in ("torch", "torchvision", "timm", "numpy", "scipy", "pillow")
    }
    return {"hyperiqa": VERSION, "python": platform.python_version(), **found, "commit": commit()}
