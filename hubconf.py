"""For torch.hub: the model as `hyperiqa.load` gives it, from whatever `predict.py` takes as a checkpoint.

model = torch.hub.load("USER/REPO", "hyperiqa", "hf://user/name")      # or "model.safetensors", "checkpoints/NAME"
model = torch.hub.load("path/of/this/checkout", "hyperiqa", "model.pkl", source="local")
model.score("photo.jpg")
"""

from hyperiqa import load as hyperiqa

__all__ = ["hyperiqa"]
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
