"""Weights that an encoder starts from, out of a file of the user's."""

from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints, foreign


def load_backbone_weights(backbone: Any, path: Path) -> None:
    """Load the encoder's weights into a `Backbone`.

    The file holds a state dict of torchvision or timm, or one of our models, from which the
    backbone is taken. A classifier and our LDA are left out. Raises UserError naming what is
    missing.
    """
    state: dict[str, Any] = foreign.public_names(
        checkpoints.read_state(checkpoints.find_model(path))[0]
    )
    prefix = (
        f"{backbone.prefix}.backbone." if hasattr(backbone, "backbone") else f"{backbone.prefix}."
    )
    inside = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    # Only a model of ours has such names.
    if inside:
        state = {name.removeprefix(prefix): tensor for name, tensor in inside.items()}
    expected = backbone.encoder_state()
    try:
        state = backbone.adapted(state)
        fitting = {
            name: state[name]
            for name, tensor in expected.items()
            if name in state and state[name].shape == tensor.shape
        }
    # Another model's names, which timm's translation does not expect, can raise anything in it.
    except Exception:
        fitting = {}
    misfits = [
        name for name in expected if name not in fitting and not name.endswith(checkpoints.IDLE)
    ]
    if misfits:
        raise UserError(
            f"{path}: {len(misfits)} of the backbone's {len(expected)} tensors are missing or "
            f"of another shape, such as {misfits[0]}: weights of another backbone?"
        )
    backbone.pretrained_part.load_state_dict(fitting, strict=False)
