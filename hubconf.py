"""For torch.hub: the model that `hyperiqa.load` gives, and with the same arguments.

    model = torch.hub.load("USER/REPO", "hyperiqa", "hf://user/name")
    model = torch.hub.load("path/of/a/checkout", "hyperiqa", "model.pkl", source="local")
    model.score("photo.jpg")

A checkpoint is whatever `predict.py` takes: a model file, a run's folder or hf://USER/NAME.
"""

from hyperiqa import load as hyperiqa

__all__ = ["hyperiqa"]

# The packages that torch.hub checks for, by the names under which they are imported.
dependencies = [
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "PIL",
    "tqdm",
    "filelock",
    "safetensors",
]
