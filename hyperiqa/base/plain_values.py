"""Values as JSON knows them, and as a person reads them."""

import math
from collections.abc import Mapping
from typing import Any


def to_json_value(value: object) -> Any:
    """A value as JSON knows it: nan becomes null, paths strings, tuples lists."""
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
        value = [str(key) if item is None else f"{key}={item}" for key, item in value.items()]
    return ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
