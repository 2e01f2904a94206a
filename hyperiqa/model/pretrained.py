"""Weights that an encoder starts from: a file of the user's, or a download."""

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from hyperiqa.base.errors import UserError
from hyperiqa.model.checkpoints import IDLE, _read, find_model
from hyperiqa.model.foreign import WRAPPERS


def check_reachable(url: str, seconds: float = 12) -> None:
    """Raise OSError unless the server of `url` answers, with whatever status, within `seconds`.
    Without network it would take minutes: name look-ups, which no socket timeout covers, and the libraries' retries."""
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=seconds
            ).close()
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
    inside = (
        f"{backbone.prefix}."
        if backbone.pretrained_part is backbone
        else f"{backbone.prefix}.backbone."
    )
    if any(name.startswith(inside) for name in state):  # a model of ours
        state = {
            name.removeprefix(inside): t for name, t in state.items() if name.startswith(inside)
        }
    try:
        state = backbone.adapted(state)
        fits = {n for n, t in own.items() if n in state and state[n].shape == t.shape}
    except Exception:  # the translation of timm meets names that it does not expect
        fits = set()
    if wrong := [name for name in own if name not in fits and name.rpartition(".")[2] not in IDLE]:
        found = f"{len(wrong)} of the backbone's {len(own)} tensors are missing or of another shape, such as {wrong[0]}"
        raise UserError(f"{path}: {found}: weights of another backbone?")
    backbone.pretrained_part.load_state_dict({name: state[name] for name in fits}, strict=False)
