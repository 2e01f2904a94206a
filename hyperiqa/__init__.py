"""Blind image quality assessment with HyperIQA: one image in, one quality score out, no reference image.

import hyperiqa

model = hyperiqa.load("checkpoints/NAME")
print(model.score("photo.jpg"))
"""

from typing import TYPE_CHECKING, Any

from hyperiqa.base.version import VERSION as __version__

if TYPE_CHECKING:
    from hyperiqa.scoring.quality_model import QualityModel, Scored, load

__all__ = ["QualityModel", "Scored", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what scores images, and torch with it, only once somebody asks for it."""
    if name not in ("QualityModel", "Scored", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hyperiqa.scoring import quality_model

    return getattr(quality_model, name)
