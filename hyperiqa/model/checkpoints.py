"""Checkpoints: tensors alone go in and out, files are written whole or not at all.
A best model is an OrderedDict of tensors under the public parameter names. What is needed to use it sits in its
`_metadata["hyperiqa"]` as plain values, which `load_state_dict` of any code ignores."""

import hashlib
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from hyperiqa.base.errors import UserError, first_five, reading_file, reason_of
from hyperiqa.base.files import HUB, write_whole
from hyperiqa.base.plain_values import to_json_value
from hyperiqa.model.foreign import WRAPPERS, _public_description, _unwrapped

DESCRIPTION_FORMAT = 1
HUB_MODEL = "model.safetensors"  # what a repository of the Hub holds
# What no model can be used without; a description holds more.
DESCRIBED = "backbone fusion patch_size resize score_range higher_is_better test_crop test_patch_num".split()
COMPUTED = (
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
)  # buffers; older timm saved them
IDLE = (
    *COMPUTED,
    "num_batches_tracked",
)  # counters: unused with our momentum, and not in old torch's files


def portable_state(
    model: torch.nn.Module, description: Mapping[str, Any] | None = None
) -> OrderedDict:
    """The model's state dict on the CPU under its public names, with the description in its metadata."""
    state = OrderedDict(
        (WRAPPERS.sub("", name), tensor.detach().cpu().clone(memory_format=torch.contiguous_format))
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
    """A description as files carry it: with its format, without `load_model`'s note on where it came from."""
    return {
        "format": DESCRIPTION_FORMAT,
        **{k: v for k, v in description.items() if k != "described"},
    }


def description_json(description: Mapping[str, Any]) -> str:
    """A description as JSON for files that are no pickles; undefined figures (nan) are null."""
    return json.dumps(to_json_value(_portable(description)))


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Changes when a tensor, its name or its shape changes; counters of batches, which nothing depends on, aside."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not name.endswith("num_batches_tracked"):
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def save(path: Path, content: object) -> None:
    """torch.save, whole or not at all."""
    write_whole(path, lambda file: torch.save(content, file))


def load(path: Path) -> Any:
    """What `save` wrote, tensors and plain values alone, on the CPU. Raises UserError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as problem:  # torch reports damaged files with half a dozen exception types
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; expected a checkpoint") from None
        raise UserError(f"{path}: not a checkpoint of tensors: {_reason(problem)}") from None


def _reason(problem: Exception) -> str:
    """Why torch could not load a file, in one line, and without its advice to switch the protection off."""
    text = str(problem).strip()
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", text):
        return (
            f"it holds {found[1]}, and to load anything but tensors can run code that came with it"
        )
    if "TorchScript" in text:
        return "a TorchScript archive; expected a state dict (parameter name -> tensor)"
    if "weights_only" in text:
        return "damaged, or not written by torch.save"
    return getattr(problem, "strerror", None) or (text.splitlines() or [type(problem).__name__])[0]


def description_of(state: object) -> dict[str, Any] | None:
    """The description that `portable_state` put into a loaded state dict; None if it has none."""
    return getattr(state, "_metadata", {}).get("hyperiqa")


def _from_hub(repo: str, revision: str | None, file: str | None) -> Path:
    """A file of a model repository of the Hugging Face Hub, in its cache, from where it comes without network too.
    Nothing in a repository is ever run: its tensors and its description are read. Raises UserError."""
    import huggingface_hub  # slow to import

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file or HUB_MODEL, revision=revision))
    except Exception as problem:  # of HTTP, of the Hub, of names, of the disk
        name, reason = (
            f"{repo}@{revision}" if revision else repo,
            reason_of(problem).split(" (Request ID")[0],
        )
        raise UserError(f"hf://{name}: {file or HUB_MODEL} cannot be had: {reason}") from None


def find_model(path: Path) -> Path:
    """The model file that the user means: the file itself, the best model in the folder of a run (or a round), or what
    hf://USER/NAME[@REVISION][/FILE] names. Of several, which a run that was stopped can leave, the newest is the best.
    Raises UserError."""
    if named := HUB.fullmatch(str(path)):
        return _from_hub(**named.groupdict())
    if not path.is_dir():
        return path
    models = sorted(path.glob("best_model_srcc_*.pkl"), key=lambda model: model.stat().st_mtime)
    if not models:
        raise UserError(
            f"{path}: no best_model_srcc_….pkl in this folder; expected a model file or a run's folder"
        )
    return models[-1]


def load_model(path: Path) -> tuple[OrderedDict, dict[str, Any]]:
    """(state dict under the public names, description) of a model file: ours, the public HyperIQA's or its Swin's.
    What carries no description is recognised by its parameter names and described as the public code uses it
    (`described` is False then). Raises UserError for what is no such model."""
    state, description = _read(path)
    state = OrderedDict((WRAPPERS.sub("", name), tensor) for name, tensor in state.items())
    if description is None:
        return state, {**_public_description(path, state), "described": False}
    number = description.get("format") if isinstance(description, Mapping) else None
    if not isinstance(number, int):
        raise UserError(
            f"{path}: its description is damaged: expected a format number, found {description!r:.60}"
        )
    if number > DESCRIPTION_FORMAT:
        raise UserError(
            f"{path}: of format {number}, newer than this program's {DESCRIPTION_FORMAT}"
        )
    if missing := [name for name in DESCRIBED if name not in description]:
        raise UserError(f"{path}: its description is damaged: it lacks {', '.join(missing)}")
    return state, {**description, "described": True}


def _read(path: Path) -> tuple[Mapping[str, torch.Tensor], Any]:
    """The state dict in a file of torch or of safetensors, and its description, if it has one. Raises UserError."""
    if path.suffix != ".safetensors":
        content = load(path)
        if isinstance(content, Mapping) and {"settings", "optimizer"} <= content.keys():
            raise UserError(
                f"{path}: a run's state, for --resume; expected its best_model_srcc_….pkl"
            )
        state = _unwrapped(path, content)
        return state, description_of(state)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    with (
        reading_file(path, "not a safetensors file", ValueError, SafetensorError),
        safe_open(path, "pt") as file,
    ):
        text = (file.metadata() or {}).get("hyperiqa")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
            text
        ) if text else None  # noqa: SIM118


def fill(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `state`, which came from `path`, into the model. Raises UserError naming the parameters that don't fit."""
    both = model.state_dict(), state
    own, given = (
        {name: t for name, t in each.items() if name.rpartition(".")[2] not in IDLE}
        for each in both
    )
    problems = {
        "missing": [name for name in own if name not in given],
        "unknown": [name for name in given if name not in own],
        "of another shape": [
            name for name in own if name in given and own[name].shape != given[name].shape
        ],
    }
    if said := [
        f"{len(names)} {what} ({first_five(names)})" for what, names in problems.items() if names
    ]:
        raise UserError(
            f"{path}: its parameters do not fit the model it should be: {'; '.join(said)}"
        )
    fitting = {
        name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in COMPUTED
    }
    model.load_state_dict(fitting, strict=False)


def save_safetensors(
    path: Path, state: Mapping[str, torch.Tensor], description: Mapping[str, Any]
) -> None:
    """The same content as a best model's: tensors under the public names, the description as JSON in the metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_whole(
        path,
        safetensors.torch.save(
            tensors, {"format": "pt", "hyperiqa": description_json(description)}
        ),
    )
