"""Values for JSON files, and for people to read."""

import math
from collections.abc import Mapping
from typing import Any


def to_json_value(value: object) -> Any:
    """A value that JSON can hold: nan and infinity become null, tuples lists, paths strings."""
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def to_text(value: object) -> str:
    """A setting as a person reads it, on one line."""
    if isinstance(value, Mapping):
        value = [key if item is None else f"{key}={item}" for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value)
