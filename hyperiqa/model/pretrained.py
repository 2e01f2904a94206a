"""Weights that an encoder starts from: a file of the user's, or a download."""

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError
from hyperiqa.model.checkpoints import find_model, is_idle, read_state
from hyperiqa.model.foreign import public_name


def check_reachable(url: str, seconds: float = 12) -> None:
    """Raise OSError unless the server of `url` answers, with whatever status, within `seconds`.

    Without network a download would take minutes to fail: name look-ups, which no socket timeout
    covers, and the libraries' retries.
    """
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            # An error of HTTP is an answer too.
            answers.append(None)
        except Exception as problem:
            answers.append(problem)
        else:
            answers.append(None)

    # A daemon does not keep the program from ending while a look-up hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise OSError(f"{url} does not answer")
    problem = answers[0]
    if problem is not None:
        raise OSError(f"{url}: {getattr(problem, 'reason', problem)}")


def load_backbone_weights(backbone: Any, path: Path) -> None:
    """Load the encoder's weights into a `Backbone`.

    The file holds a state dict of torchvision or timm, or one of our models, from which the
    backbone is taken. A classifier and our LDA are left out. Raises UserError naming what is
    missing.
    """
    content, _ = read_state(find_model(path))
    state = {public_name(name): tensor for name, tensor in content.items()}
    prefix = f"{backbone.prefix}."
    if backbone.pretrained_part is not backbone:
        prefix += "backbone."
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
    misfits = [name for name in expected if name not in fitting and not is_idle(name)]
    if misfits:
        raise UserError(
            f"{path}: {len(misfits)} of the backbone's {len(expected)} tensors are missing or "
            f"of another shape, such as {misfits[0]}: weights of another backbone?"
        )
    backbone.pretrained_part.load_state_dict(fitting, strict=False)
