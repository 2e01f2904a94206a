"""A model as a repository of the Hugging Face Hub: tensors, config.json, and a card written from its certificate."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from hyperiqa.base.errors import UserError, reason_of
from hyperiqa.base.files import write_whole
from hyperiqa.model.checkpoints import HUB_MODEL, description_json, portable_state, save_safetensors
from hyperiqa.scoring import certificate_checks
from hyperiqa.scoring.quality_model import QualityModel

TASK = "image-quality-assessment"
TAGS = [TASK, "blind-image-quality-assessment", "no-reference", "hyperiqa"]


def write_folder(folder: Path, model: QualityModel, repo: str) -> None:
    """model.safetensors, config.json and README.md; what is there of them is replaced. Raises UserError."""
    d = model.description
    save_safetensors(folder / HUB_MODEL, portable_state(model.net), d)
    about = json.loads(description_json(d))
    for each in about.get("certificate", {}).get("sets", {}).values():
        each.pop("looks", None)  # long; the tensors' file has them
    config = {
        "library_name": "hyperiqa",
        "model_type": "hyperiqa",
        "architectures": ["HyperNet"],
        **about,
    }
    write_whole(folder / "config.json", json.dumps(config, indent=1) + "\n")
    write_whole(folder / "README.md", str(card(d, repo)))


def card(d: Mapping[str, Any], repo: str) -> ModelCard:
    """The model card: metadata with the figures as the Hub indexes them, how to use the model, where it comes from."""
    data = ModelCardData(
        library_name="hyperiqa",
        tags=[*TAGS, d["backbone"]],
        model_name=repo.rpartition("/")[2],
        eval_results=[
            EvalResult(TASK, name, name, figure, value, metric_name=figure.upper())
            for name, figure, value, _ in _figures(d)
        ]
        or None,
    )
    low, high = d["score_range"]
    better = "higher" if d["higher_is_better"] else "lower"
    lines = [
        f"# {repo.rpartition('/')[2]}",
        "",
        f"Blind image quality assessment: one image in, one score out. HyperIQA with {d['backbone']}, fusion "
        f"{d['fusion']}, trained on {d['dataset']}. Scores are on that set's scale ({low:g} to {high:g}), {better} is "
        "better.",
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
    if rows := list(_figures(d)):
        lines += ["| data set | figure | value | 95 % |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {figure.upper()} | {value:.4f} | {bounds} |"
            for name, figure, value, bounds in rows
        ]
    if "certificate" in d:
        lines += ["", "## Where it comes from", ""]
        lines += [
            f"- **{title}**: {text}"
            for title, text in certificate_checks.facts(HUB_MODEL, d, compared=False)
        ]
        lines += ["", f"`python certify.py hf://{repo} --dataset_path … ` checks all of it."]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _figures(d: Mapping[str, Any]) -> Iterator[tuple[str, str, float, str]]:
    """(data set, figure, value, interval) of what the model's tests gave; those that are undefined are left out."""
    measured = d.get("certificate", {}).get("figures") or d.get("metrics") or {}
    for part, figures in measured.items():
        name = (
            d["dataset"]
            if part == "test"
            else f"{d['dataset']} validation"
            if part == "val"
            else part
        )
        for figure, found in figures.items():
            value, *bounds = found if isinstance(found, list) else [found]
            if value is not None and not math.isnan(value):
                known = bounds and None not in bounds
                yield name, figure, value, f"{bounds[0]:.4f} to {bounds[1]:.4f}" if known else ""


def private_words(d: Mapping[str, Any]) -> list[str]:
    """What of the description names places of this machine: paths that are published with it."""
    c = d.get("certificate", {})
    own = [*c.get("command", []), *(each["path"] or "" for each in c.get("sets", {}).values())]
    own += [each["file"] for each in c.get("starts", {}).values()]
    return list(dict.fromkeys(shlex.quote(word) for word in own if "/" in word))


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload the folder to the model repository, which is made where there is none; its address. Raises UserError."""
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload a HyperIQA model"
        )
    except Exception as problem:  # of HTTP, of the Hub, of names
        hint = "log in by `hf auth login`, with a token that may write"
        raise UserError(f"--push {repo}: {reason_of(problem)} ({hint})") from None
    return f"{api.endpoint}/{repo}"
