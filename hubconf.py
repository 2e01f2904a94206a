"""For torch.hub: the model as `inference.load` gives it, from whatever `predict.py` takes as a checkpoint.

model = torch.hub.load("USER/REPO", "hyperiqa", "hf://user/name")      # or "model.safetensors", "checkpoints/NAME"
model = torch.hub.load("path/of/this/checkout", "hyperiqa", "model.pkl", source="local")
model.score("photo.jpg")
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "timm", "numpy", "scipy", "PIL", "tqdm", "filelock", "safetensors"]


def hyperiqa(checkpoint: str, **settings: Any) -> Any:
    """A model ready to score; settings: device, precision, resize, crops, exif_rotate, workers as of `inference.load`.
    The caller's project may have modules called like ours: these are loaded as a package of their own."""
    here = Path(__file__).resolve().parent
    # By its path: `common` could be the caller's.
    spec: Any = importlib.util.spec_from_file_location("hyperiqa_packaging", here / "common" / "packaging.py")
    packaging = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packaging)
    packaging.write_package(here / "build" / "hub" / "hyperiqa_hub")
    if str(here / "build" / "hub") not in sys.path:
        sys.path.append(str(here / "build" / "hub"))
    return importlib.import_module("hyperiqa_hub").load(checkpoint, **settings)
