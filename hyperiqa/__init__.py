"""Blind image quality assessment with HyperIQA: an image in, a quality score out.

No reference image is needed:

    import hyperiqa

    model = hyperiqa.load("checkpoints/NAME")
    print(model.score("photo.jpg"))
    print(model.explain("photo.jpg"))    # where the model has a calibration
"""

from typing import TYPE_CHECKING, Any

from hyperiqa.base.version import VERSION as __version__

# Type checkers and editors see the public names; at run time they are imported on first use.
if TYPE_CHECKING:
    from hyperiqa.scoring.quality_model import Explained, QualityModel, Scored, load

__all__ = ["Explained", "QualityModel", "Scored", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the scoring code, and torch with it, only when one of its names is first used."""
    if name not in ("Explained", "QualityModel", "Scored", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hyperiqa.scoring import quality_model

    return getattr(quality_model, name)
