"""Checkpoints: only tensors go in and out, and files are written whole or not at all.

A best model is an OrderedDict of tensors under the public parameter names. Its
`_metadata["hyperiqa"]` holds what is needed to use the model, as plain values, which
`load_state_dict` of any code ignores.
"""

import hashlib
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors.torch
import torch

from hyperiqa.base import errors, files, network, plain_values, public_models
from hyperiqa.model.description import FORMAT, problem_of_description
from hyperiqa.model.foreign import (
    StateDict,
    describe_public_model,
    find_state_dict,
    public_name,
    public_names,
)

# The file that a repository of the Hugging Face Hub holds.
HUB_MODEL = "model.safetensors"
# Endings of the names of buffers that a model computes itself; older timm saved them.
COMPUTED = (".relative_position_index", ".relative_coords_table", ".attn_mask")
# And of all tensors without which a model works the same: counters are unused with our momentum,
# and old torch's files do not have them.
IDLE = (*COMPUTED, ".num_batches_tracked")
# In the names of low-rank adapters' tensors (lora.py), and of no others.
ADAPTER = ".lora_"


def portable_state(
    model: torch.nn.Module, description: Mapping[str, Any] | None = None
) -> OrderedDict:
    """The model's state dict on the CPU under its public names; a description goes with it."""
    # Copies in plain layout: training goes on in the originals, which may have another layout.
    state = OrderedDict(
        (public_name(name), tensor.detach().cpu().clone(memory_format=torch.contiguous_format))
        for name, tensor in model.state_dict().items()
    )
    state._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    if description is not None:
        describe(state, description)
    return state


def describe(state: OrderedDict, description: Mapping[str, Any]) -> None:
    """Put a description into a state dict of `portable_state`."""
    state._metadata["hyperiqa"] = _portable(description)  # type: ignore[attr-defined]


def _portable(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as files carry it, with its format.

    `load_model`'s note on whether the file had a description is left out.
    """
    return {"format": FORMAT} | {k: v for k, v in description.items() if k != "described"}


def description_json(description: Mapping[str, Any]) -> str:
    """A description as JSON for files that are no pickles; undefined figures (nan) are null."""
    return json.dumps(plain_values.to_json_value(_portable(description)))


def digest(state: StateDict) -> str:
    """A fingerprint that changes when a tensor, its name or its shape changes.

    Counters of batches are left out, because nothing depends on them.
    """
    fingerprint = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not name.endswith("num_batches_tracked"):
            fingerprint.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            # As bytes, because NumPy has no bfloat16.
            content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            fingerprint.update(content.numpy().data)
    return fingerprint.hexdigest()[:16]


def save(path: Path, content: object) -> None:
    """torch.save, whole or not at all."""
    files.write_whole(path, lambda file: torch.save(content, file))


def load(path: Path) -> Any:
    """What `save` wrote, on the CPU: only tensors and plain values. UserError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise errors.UserError(f"{path}: no such file") from None
    # torch reports damaged files with half a dozen exception types.
    except Exception as problem:
        if path.is_file() and path.stat().st_size == 0:
            raise errors.UserError(f"{path}: the file is empty; expected a checkpoint") from None
        raise errors.UserError(f"{path}: not a checkpoint of tensors: {_reason(problem)}") from None


def _reason(problem: Exception) -> str:
    """Why torch could not load a file, in one line.

    torch's advice to switch the protection off is left out.
    """
    text = str(problem).strip()
    if refused := re.search(r"GLOBAL (\S+) was not an allowed global", text):
        return (
            f"it holds {refused[1]}, and loading anything but tensors "
            "can run code that came with the file"
        )
    if "TorchScript" in text:
        return "a TorchScript archive; expected a state dict (parameter name -> tensor)"
    if "weights_only" in text:
        return "damaged, or not written by torch.save"
    # The system's own words, such as "Is a directory", are the shortest.
    if getattr(problem, "strerror", None):
        return problem.strerror  # type: ignore[attr-defined]
    return text.splitlines()[0] if text else type(problem).__name__


def description_of(state: object) -> dict[str, Any] | None:
    """The description that `portable_state` put into a loaded state dict; None if it has none."""
    metadata = getattr(state, "_metadata", {})
    return metadata.get("hyperiqa") if isinstance(metadata, Mapping) else None


def _from_hub(repo: str, revision: str | None, file: str, advice: str = "") -> Path:
    """A file of a model repository of the Hugging Face Hub, as a path in the Hub's cache.

    Without network, the file that an earlier download left there counts. Nothing in a repository is
    ever run: only tensors and a description are read. Raises UserError, which ends with the advice,
    within 15 seconds where the Hub does not answer.
    """
    unreachable: OSError | None = None
    try:
        # Here, because it is slow to import.
        from huggingface_hub import constants, hf_hub_download

        # The Hub's client would try for half a minute, and say so each time.
        try:
            if not constants.HF_HUB_OFFLINE:
                network.check_reachable(constants.ENDPOINT, seconds=6)
        except OSError as problem:
            unreachable = problem
        return Path(
            hf_hub_download(repo, file, revision=revision, local_files_only=unreachable is not None)
        )
    # Of imports, of HTTP, of the Hub, of names, of the disk.
    except Exception as problem:
        name = f"{repo}@{revision}" if revision else repo
        # The number of a request tells the user nothing.
        reason = errors.reason_of(unreachable or problem).split(" (Request ID")[0]
        raise errors.UserError(
            f"hf://{name}: {file} cannot be downloaded: {reason}{advice}"
        ) from None


def _public_model(name: str) -> Path:
    """The file of one of PUBLIC_MODELS, downloaded on first use. Raises UserError."""
    model = public_models.PUBLIC_MODELS[name]
    path = _from_hub(
        model.repo,
        None,
        model.file,
        f"; download https://huggingface.co/{model.repo}/resolve/main/{model.file} on a machine "
        f"with network, and give the path of the file in place of {name}",
    )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != model.sha256:
        # The Hub's cache has a link in this place. Only without the file behind it, which is
        # named here, the Hub's client downloads it again.
        raise errors.UserError(
            f"{name}: {path.resolve()} is not the published file: expected SHA-256 {model.sha256}, "
            f"found {sha256}; delete the file to download it again"
        )
    return path


def find_model(path: Path) -> Path:
    """The model file that the user means.

    It is the file itself, the best model in the folder of a run (or of a round), what
    hf://USER/NAME[@REVISION][/FILE] or a pasted address names (`hub_file`), or the public model of
    that name. A run that was stopped can leave several best models; the newest is the best. Raises
    UserError.
    """
    if on_hub := files.hub_file(path):
        repo, revision, file = on_hub
        # A name without a suffix is that of a folder.
        is_file = PurePosixPath(file).suffix
        return _from_hub(repo, revision, file if is_file else str(PurePosixPath(file, HUB_MODEL)))
    if not path.exists():
        if str(path) not in public_models.PUBLIC_MODELS:
            raise errors.UserError(public_models.no_such_model(path))
        return _public_model(str(path))
    if not path.is_dir():
        return path
    models = sorted(path.glob("best_model_srcc_*.pkl"), key=lambda model: model.stat().st_mtime)
    if not models:
        raise errors.UserError(
            f"{path}: no best_model_srcc_….pkl in this folder; "
            "expected a model file or a run's folder"
        )
    return models[-1]


def load_model(path: Path) -> tuple[OrderedDict, dict[str, Any]]:
    """(state dict under the public names, description) of a model file.

    The model is ours, the public HyperIQA's, SMART-IQA's or pyiqa's. One that carries no
    description is recognised by its parameter names, and described as its program uses it
    (`described` is False then). Raises UserError for anything else.
    """
    content, description = read_state(path)
    if any(ADAPTER in name for name in content):
        raise errors.UserError(
            f"{path}: an adapter, which is no model without its encoder: "
            "export.py ADAPTER OUTPUT --base WEIGHTS merges the two"
        )
    state = public_names(content)
    if description is None:
        return state, {**describe_public_model(path, content), "described": False}
    if problem := problem_of_description(description):
        raise errors.UserError(f"{path}: {problem}")
    return state, {**description, "described": True}


def read_state(path: Path) -> tuple[StateDict, Any]:
    """(state dict, description or None) of a file of torch or of safetensors.

    Names and description are as the file has them, unchecked. Raises UserError.
    """
    if path.suffix != ".safetensors":
        content = load(path)
        if isinstance(content, Mapping) and {"settings", "optimizer"} <= content.keys():
            raise errors.UserError(
                f"{path}: this is the state that --resume goes on from; expected the run's best "
                "model, best_model_srcc_….pkl"
            )
        state = find_state_dict(path, content)
        return state, description_of(state)
    if not path.exists():
        raise errors.UserError(f"{path}: no such file")
    # ValueError and RecursionError: the description is no JSON, or absurdly nested.
    problems = (ValueError, RecursionError, safetensors.SafetensorError)
    with (
        errors.reading_file(path, "not a safetensors file", *problems),
        safetensors.safe_open(path, "pt") as file,
    ):
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get("hyperiqa")
        return state, json.loads(text) if text else None


def fill(model: torch.nn.Module, state: StateDict, path: Path) -> None:
    """Load `state`, which came from `path`, into the model.

    Raises UserError naming the parameters that don't fit; the model is unchanged then.
    """
    expected = {name: t.shape for name, t in model.state_dict().items() if not name.endswith(IDLE)}
    given = {name: t.shape for name, t in state.items() if not name.endswith(IDLE)}
    misfits = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": [n for n in expected if n in given and expected[n] != given[n]],
    }
    problems = [
        f"{len(names)} {kind} ({errors.first_five(names)})"
        for kind, names in misfits.items()
        if names
    ]
    if problems:
        raise errors.UserError(
            f"{path}: its parameters do not fit the expected model: {'; '.join(problems)}"
        )
    # The counters are loaded where there are any; the computed buffers stay the model's own.
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(COMPUTED)}
    model.load_state_dict(kept, strict=False)


def save_safetensors(path: Path, state: StateDict, description: Mapping[str, Any]) -> None:
    """Write the content of a best model as safetensors.

    Tensors are under the public names; the description is JSON in the metadata.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt", "hyperiqa": description_json(description)}
    files.write_whole(path, safetensors.torch.save(tensors, metadata))
