"""A model as a repository of the Hugging Face Hub.

It holds the tensors, a config.json, and a model card that is written from the certificate.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from hyperiqa.base import errors, files, terminal
from hyperiqa.datasets.names import set_title
from hyperiqa.model import checkpoints, description as descriptions
from hyperiqa.scoring import calibrating, certificate_checks, quality_model, score_files

TASK = "image-quality-assessment"


def write_folder(folder: Path, model: quality_model.QualityModel, repo: str) -> None:
    """Write model.safetensors, config.json and README.md into a folder, replacing older ones.

    Prints which paths of this machine go with it in the certificate. repo: USER/NAME, the
    repository that the model card speaks of. Raises UserError.
    """
    description = model.description
    checkpoints.save_safetensors(
        folder / checkpoints.HUB_MODEL, checkpoints.portable_state(model.net), description
    )
    about = json.loads(checkpoints.description_json(description))
    for facts_of_set in descriptions.certificate_of(about).get("sets", {}).values():
        # The hashes of all training images: long, and the tensors' file has them.
        facts_of_set.pop("looks", None)
    config = {
        "library_name": "hyperiqa",
        "model_type": "hyperiqa",
        "architectures": [type(model.net).__name__],
        **about,
    }
    files.write_whole(folder / "config.json", json.dumps(config, indent=1) + "\n")
    files.write_whole(folder / "README.md", str(card(description, repo)))
    if words := private_words(description):
        print(f"Paths in its description, which go with it: {' '.join(words)}")


def card(description: Mapping[str, Any], repo: str) -> ModelCard:
    """The model card: metadata, how to use the model, its figures, and where it comes from.

    The metadata hold the figures in the form in which the Hub indexes them.
    """
    name = repo.rpartition("/")[2]
    figures = list(_figures(description))
    metadata = ModelCardData(
        library_name="hyperiqa",
        tags=[
            TASK,
            "blind-image-quality-assessment",
            "no-reference",
            "hyperiqa",
            description["backbone"],
        ],
        model_name=name,
        eval_results=[
            EvalResult(TASK, data_set, data_set, figure, value, metric_name=figure.upper())
            for data_set, _, figure, value, _ in figures
        ]
        or None,
    )
    # Below the metadata, the card is markdown.
    lines = _usage_lines(description, name, repo)
    if figures:
        lines += ["| data set | images | figure | value | 95 % |", "|---|---|---|---|---|"]
    for data_set, images, figure, value, interval in figures:
        lines.append(f"| {data_set} | {images} | {figure.upper()} | {value:.4f} | {interval} |")
    if "certificate" in description:
        lines += ["", "## Where it comes from", ""]
        # Whoever reads the card runs other versions than the machine that writes it.
        for title, text in certificate_checks.facts(
            checkpoints.HUB_MODEL, description, compared=False
        ):
            lines.append(f"- **{title}**: {text}")
        lines += ["", f"`python certify.py hf://{repo} --dataset_path … ` checks all of it."]
    text = "\n".join(map(terminal.printable, lines))
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def _usage_lines(description: Mapping[str, Any], name: str, repo: str) -> list[str]:
    return [
        f"# {name}",
        "",
        "Blind image quality assessment: one image in, one score out. HyperIQA with "
        f"{description['backbone']}, {score_files.head_text(description)}, trained on "
        f"{description['dataset']}. Scale of the scores: {score_files.scale_text(description)}.",
        "",
        "```python",
        "from hyperiqa import load",
        "",
        f'model = load("hf://{repo}")',
        'print(model.score("photo.jpg"))',
        "```",
        "",
        f"In a checkout of the trainer: `python predict.py hf://{repo} photos`.",
        "Tensors and a description are read; no code of this repository is run.",
        "",
    ]


def _figures(description: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float, str]]:
    """The figures of the model's tests: (data set, images, figure, value, interval or "").

    The number of images is "" where it is not known.
    Undefined figures are left out. A model without a certificate has figures without intervals.
    """
    certified = descriptions.certificate_of(description)
    sets = certified.get("sets", {})
    tested_parts = certified.get("figures") or description.get("metrics") or {}
    for part, figures in tested_parts.items():
        name = description["dataset"] if part in ("test", "val") else part
        title = set_title(name, certificate_checks.is_of_demo(name, description))
        if part == "val":
            title += " validation"
        images = sets.get(name, {}).get("images", {}).get("val" if part == "val" else "test", "")
        for figure, estimate in figures.items():
            # [value, low, high] in a certificate, the value alone in a description's metrics.
            value, *bounds = estimate if isinstance(estimate, list) else [estimate]
            if value is None or math.isnan(value):
                continue
            has_interval = bounds and None not in bounds
            interval = f"{bounds[0]:.4f} to {bounds[1]:.4f}" if has_interval else ""
            yield title, str(images), figure, value, interval


def private_words(description: Mapping[str, Any]) -> list[str]:
    """The words of a description that name places of this machine: they get published with it."""
    certificate = descriptions.certificate_of(description)
    words = [
        *certificate.get("command", []),
        *(facts_of_set["path"] or "" for facts_of_set in certificate.get("sets", {}).values()),
        *(start["file"] for start in certificate.get("starts", {}).values()),
        *(record["path"] or "" for record in calibrating.records_of(description).values()),
    ]
    # A dictionary, unlike a set, drops repetitions and keeps the order.
    return list(dict.fromkeys(shlex.quote(word) for word in words if "/" in word))


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to a model repository, and return the repository's address.

    A repository that does not exist is created; private: as a private one. Raises UserError.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload a HyperIQA model"
        )
    # HTTP, the Hub and the check of names raise their own kinds.
    except Exception as problem:
        raise errors.UserError(
            f"--push {repo}: {errors.reason_of(problem)} (log in by `hf auth login`, with a token "
            "that may write)"
        ) from None
    return f"{api.endpoint}/{repo}"
