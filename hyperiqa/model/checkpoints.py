"""Checkpoints: tensors alone go in and out, files are written whole or not at all.
A best model is an OrderedDict of tensors under the public parameter names. What is needed to use it sits in its
`_metadata["hyperiqa"]` as plain values, which `load_state_dict` of any code ignores."""

import hashlib
import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from hyperiqa.base.errors import UserError, first_five, reading, said_of
from hyperiqa.base.files import HUB, write_whole
from hyperiqa.training.run_files import plain

DESCRIPTION_FORMAT = 1
HUB_MODEL = "model.safetensors"  # what a repository of the Hub holds
# What no model can be used without; a description holds more.
DESCRIBED = "backbone fusion patch_size resize score_range higher_is_better test_crop test_patch_num".split()
COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask")  # buffers; older timm saved them
IDLE = (*COMPUTED, "num_batches_tracked")  # counters: unused with our momentum, and not in old torch's files
# Where other code keeps the weights to use, best first: averaged ones (params_ema) before the others.
USUAL_KEYS = ("state_dict", "model", "params_ema", "params", "model_state_dict", "net")
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # DataParallel's and torch.compile's, before a public name
# Blocks of the third stage, and whether they are bottlenecks -> torchvision's name.
RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
# Embedding width and blocks of the third stage -> what timm's name calls it.
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}


def portable_state(model: torch.nn.Module, description: Mapping[str, Any] | None = None) -> OrderedDict:
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
    return {"format": DESCRIPTION_FORMAT, **{k: v for k, v in description.items() if k != "described"}}


def description_json(description: Mapping[str, Any]) -> str:
    """A description as JSON for files that are no pickles; undefined figures (nan) are null."""
    return json.dumps(plain(_portable(description)))


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
        return f"it holds {found[1]}, and to load anything but tensors can run code that came with it"
    if "TorchScript" in text:
        return "a TorchScript archive; expected a state dict (parameter name -> tensor)"
    if "weights_only" in text:
        return "damaged, or not written by torch.save"
    return getattr(problem, "strerror", None) or (text.splitlines() or [type(problem).__name__])[0]


def save_last(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `last.pt`; the one before stays as `previous.pt`. At every moment one of them is whole."""
    last, spare = folder / "last.pt", folder / ".previous.pt.tmp"
    if last.exists():
        spare.unlink(missing_ok=True)
        try:
            os.link(last, spare)
        except OSError:  # a file system without hard links
            shutil.copyfile(last, spare)
        spare.replace(folder / "previous.pt")
    save(last, state)


def load_last(folder: Path) -> tuple[dict[str, Any], str]:
    """The state that `save_last` wrote, and what to tell the user where `last.pt` was damaged (else "").
    Raises UserError where neither file can be read."""
    try:
        return load(folder / "last.pt"), ""
    except UserError as damage:
        previous = folder / "previous.pt"
        if not previous.exists():
            raise
        state = load(previous)
        previous.replace(folder / "last.pt")  # or the next save would put the damaged one where the good one lies
        return state, f"{damage}; falling back to previous.pt"


def newest_round(folder: Path) -> Path:
    """Where a run's newest `last.pt` lies: its folder, or that of its last round (`round2`, `round3`, …)."""
    rounds = sorted(folder.glob("round*/last.pt"), key=lambda path: int(path.parent.name.removeprefix("round")))
    return rounds[-1].parent if rounds else folder


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
        name, reason = f"{repo}@{revision}" if revision else repo, said_of(problem).split(" (Request ID")[0]
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
        raise UserError(f"{path}: no best_model_srcc_….pkl in this folder; expected a model file or a run's folder")
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
        raise UserError(f"{path}: its description is damaged: expected a format number, found {description!r:.60}")
    if number > DESCRIPTION_FORMAT:
        raise UserError(f"{path}: of format {number}, newer than this program's {DESCRIPTION_FORMAT}")
    if missing := [name for name in DESCRIBED if name not in description]:
        raise UserError(f"{path}: its description is damaged: it lacks {', '.join(missing)}")
    return state, {**description, "described": True}


def _read(path: Path) -> tuple[Mapping[str, torch.Tensor], Any]:
    """The state dict in a file of torch or of safetensors, and its description, if it has one. Raises UserError."""
    if path.suffix != ".safetensors":
        content = load(path)
        if isinstance(content, Mapping) and {"settings", "optimizer"} <= content.keys():
            raise UserError(f"{path}: a run's state, for --resume; expected its best_model_srcc_….pkl")
        state = _unwrapped(path, content)
        return state, description_of(state)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    with reading(path, "not a safetensors file", ValueError, SafetensorError), safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("hyperiqa")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(text) if text else None  # noqa: SIM118


def _unwrapped(path: Path, state: object) -> Mapping[str, torch.Tensor]:
    """The state dict in what a file holds: all of it, or its one entry that is a state dict, whatever its key; of
    several that of a usual key. Raises UserError where there is none, or no way to choose."""
    if _is_state_dict(state):
        return state  # type: ignore[return-value]
    entries = state.items() if isinstance(state, Mapping) else ()
    found = {key: entry for key, entry in entries if _is_state_dict(entry)}
    if not found:
        raise UserError(f"{path}: expected a state dict (parameter name -> tensor)")
    usual = [key for key in USUAL_KEYS if key in found] if len(found) > 1 else list(found)
    if not usual:
        raise UserError(f"{path}: expected one state dict, found {', '.join(map(str, found))}")
    return found[usual[0]]


def _is_state_dict(value: object) -> bool:
    items = value.items() if isinstance(value, Mapping) else ()
    return bool(items) and all(isinstance(name, str) and isinstance(found, torch.Tensor) for name, found in items)


def fill(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load `state`, which came from `path`, into the model. Raises UserError naming the parameters that don't fit."""
    both = model.state_dict(), state
    own, given = ({name: t for name, t in each.items() if name.rpartition(".")[2] not in IDLE} for each in both)
    problems = {
        "missing": [name for name in own if name not in given],
        "unknown": [name for name in given if name not in own],
        "of another shape": [name for name in own if name in given and own[name].shape != given[name].shape],
    }
    if said := [f"{len(names)} {what} ({first_five(names)})" for what, names in problems.items() if names]:
        raise UserError(f"{path}: its parameters do not fit the model it should be: {'; '.join(said)}")
    fitting = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in COMPUTED}
    model.load_state_dict(fitting, strict=False)


def _public_description(path: Path, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """How the public code uses a model with these parameters; UserError where it is none that we can build."""

    def blocks(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})

    backbone, prefix = None, "res"
    if "res.conv1.weight" in state:
        backbone = RESNETS.get((blocks("res.layer3."), "res.layer3.0.conv3.weight" in state))
    elif "swin.backbone.patch_embed.proj.weight" in state:
        prefix, width = "swin", len(state["swin.backbone.patch_embed.proj.weight"])
        size = SWINS.get((width, blocks("swin.backbone.layers_2.blocks.")))
        backbone = size and f"swin_{size}_patch4_window7_224"
    hyper, last = (state.get(name) for name in ("conv1.0.weight", f"{prefix}.lda4_fc.weight"))
    if backbone is None or hyper is None or last is None or min(hyper.ndim, last.ndim) < 2:
        some = ", ".join(list(state)[:3]) or "none"
        wanted = "expected parameters res.*, conv1.* or swin.backbone.*, conv1.*"
        raise UserError(f"{path}: not a HyperIQA model with a known backbone: {wanted}; found {some}, …")
    stages = [state.get(f"{prefix}.lda{i}_pool.0.weight", last).shape[1:2].numel() for i in (1, 2, 3)]
    stages.append(last.shape[1])
    if hyper.shape[1] not in (last.shape[1], sum(stages)):
        wanted = f"{last.shape[1]}, those of the last stage, or {sum(stages)}, those of all stages"
        raise UserError(f"{path}: conv1.0.weight takes {hyper.shape[1]} channels; expected {wanted}")
    fusion = "none" if hyper.shape[1] == last.shape[1] else "direct"
    for name, found in (("concat", "fusion.conv.weight"), ("attention", "multiscale_attention.attention_net.0.weight")):
        fusion = name if found in state else fusion
    return {
        "backbone": backbone, "fusion": fusion, "patch_size": 224, "resize": "512x384",
        "exif_rotate": False, "dataset": "koniq-10k", "score_range": [0.0, 100.0], "higher_is_better": True,
        "test_crop": "center", "test_patch_num": 1,
    }  # fmt: skip


def save_safetensors(path: Path, state: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> None:
    """The same content as a best model's: tensors under the public names, the description as JSON in the metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_whole(path, safetensors.torch.save(tensors, {"format": "pt", "hyperiqa": description_json(description)}))


def check_reachable(url: str, seconds: float = 12) -> None:
    """Raise OSError unless the server of `url` answers, with whatever status, within `seconds`.
    Without network it would take minutes: name look-ups, which no socket timeout covers, and the libraries' retries."""
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answer.append(None)
        except Exception as problem:
            answer.append(None if isinstance(problem, urllib.error.HTTPError) else problem)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise OSError(f"{url} does not answer")
    if answer[0] is not None:
        raise OSError(f"{url}: {getattr(answer[0], 'reason', answer[0])}")


def load_backbone_weights(backbone: Any, path: Path) -> None:
    """Load weights into a `models.Backbone`: a state dict of torchvision or timm, or one of our models, whose
    backbone it takes; the classifier's, and our LDA's, are left out. Raises UserError naming what is missing."""
    state = {WRAPPERS.sub("", name): tensor for name, tensor in _read(find_model(path))[0].items()}
    own = backbone.encoder_state()
    inside = f"{backbone.prefix}." if backbone.pretrained_part is backbone else f"{backbone.prefix}.backbone."
    if any(name.startswith(inside) for name in state):  # a model of ours
        state = {name.removeprefix(inside): t for name, t in state.items() if name.startswith(inside)}
    try:
        state = backbone.adapted(state)
        fits = {n for n, t in own.items() if n in state and state[n].shape == t.shape}
    except Exception:  # the translation of timm meets names that it does not expect
        fits = set()
    if wrong := [name for name in own if name not in fits and name.rpartition(".")[2] not in IDLE]:
        found = f"{len(wrong)} of the backbone's {len(own)} tensors are missing or of another shape, such as {wrong[0]}"
        raise UserError(f"{path}: {found}: weights of another backbone?")
    backbone.pretrained_part.load_state_dict({name: state[name] for name in fits}, strict=False)
