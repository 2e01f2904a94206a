"""Weights that an encoder starts from: a file of the user's, or a download."""

import threading
import urllib.request
from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError
from hyperiqa.model.checkpoints import IDLE, find_model, read_state
from hyperiqa.model.foreign import public_name


def check_reachable(url: str, seconds: float = 12) -> None:
    """Raise OSError unless the server of `url` answers, with whatever status, within `seconds`.

    Without network a download would take minutes to fail: name look-ups, which no socket timeout
    covers, and the libraries' retries.
    """
    problems: list[Exception] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.request.HTTPError:
            # An error of HTTP is an answer too.
            pass
        except Exception as problem:
            problems.append(problem)

    # A daemon does not keep the program from ending while a look-up hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise OSError(f"{url} does not answer")
    if problems:
        raise OSError(f"{url}: {getattr(problems[0], 'reason', problems[0])}")


def load_backbone_weights(backbone: Any, path: Path) -> None:
    """Load the encoder's weights into a `Backbone`.

    The file holds a state dict of torchvision or timm, or one of our models, from which the
    backbone is taken. A classifier and our LDA are left out. Raises UserError naming what is
    missing.
    """
    content, _ = read_state(find_model(path))
    state = {public_name(name): tensor for name, tensor in content.items()}
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
    misfits = [name for name in expected if name not in fitting and not name.endswith(IDLE)]
    if misfits:
        raise UserError(
            f"{path}: {len(misfits)} of the backbone's {len(expected)} tensors are missing or "
            f"of another shape, such as {misfits[0]}: weights of another backbone?"
        )
    backbone.pretrained_part.load_state_dict(fitting, strict=False)
