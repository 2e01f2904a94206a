"""Public models that have a name, so that they can be used without knowing where they lie.

The name stands for a file in a repository of the Hugging Face Hub. The file is identified by its
SHA-256, which was read on the Hub, so that it does not matter who keeps the copy.
"""

from pathlib import Path
from types import SimpleNamespace

from hyperiqa.base.parser import did_you_mean

# Each with what its users should know before they use it.
PUBLIC_MODELS = {
    "koniq": SimpleNamespace(
        title="HyperIQA with ResNet-50, trained again by the authors of pyiqa",
        trained_on="KonIQ-10k",
        scores="about 0 to 1, higher is better",
        licence="CC BY-NC-SA 4.0 (as its repository states)",
        repo="chaofengc/IQA-PyTorch-Weights",
        file="HyperIQA-resnet50-koniq10k-c96c41b1.pth",
        sha256="c96c41b1094c8c1ed86cbd661941717f95e24e09e791b2c512d4ffbbde7253ed",
    ),
    "koniq-authors": SimpleNamespace(
        title="HyperIQA with ResNet-50, by the authors of the paper (CVPR 2020)",
        trained_on="KonIQ-10k",
        scores="0 to 100, higher is better",
        licence="MIT (github.com/SSL92/hyperIQA); this copy: OpenRAIL++",
        repo="ByteDance/LatentSync",
        file="auxiliary/koniq_pretrained.pkl",
        sha256="ff9277bcc68ecc10e77d88b6d0a32825ec3c85562095542734ec6212eaaf6d81",
    ),
}


def models_table() -> str:
    """The public models as text of at most 80 columns."""
    blocks = [
        f"{name}\n"
        f"    {model.title}\n"
        f"    trained on  {model.trained_on}\n"
        f"    scores      {model.scores}\n"
        f"    licence     {model.licence}\n"
        f"    repository  huggingface.co/{model.repo}\n"
        f"    file        {model.file}\n"
        f"    SHA-256     {model.sha256}"
        for name, model in PUBLIC_MODELS.items()
    ]
    return "\n\n".join(
        [
            "Public models. Give the name in place of a checkpoint: predict.py koniq photos",
            *blocks,
            "A file or folder of the same name in the working folder is used instead.",
        ]
    )


def no_such_model(path: Path) -> str:
    """The user's mistake where a name is neither a path nor a public model, in one line."""
    hint = did_you_mean(str(path), PUBLIC_MODELS)
    return (
        f"{path}: no such file or folder{hint}; expected a model file, a run's folder, "
        f"hf://USER/NAME or a public model ({', '.join(PUBLIC_MODELS)})"
    )
