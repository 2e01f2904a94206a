"""The files of `export.py` that a runtime for CPUs scores with: ONNX Runtime and OpenVINO.

A graph takes `patches`, uint8 (N, P, P, 3), and gives `scores`, float32 (N,). The file has the
description of the model. Nothing here needs torch.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, not_installed, reading_file
from hyperiqa.model.description import problem_of_description

# The ending of a file -> the package that scores with it.
RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}
Scorer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """An exported model, ready to score patches.

    path: the file that holds the graph.
    score: patches, uint8 (N, P, P, 3) -> scores (N,).
    description: the model's; it has been checked.
    weights: the name of the runtime, and a digest of the files.
    precision: "fp32" or "int8".
    """

    path: Path
    score: Scorer
    description: dict[str, Any]
    weights: str
    precision: str


def refused(path: Path, **settings: Any) -> Iterator[str]:
    """Why an exported model cannot be used with these settings, a line for each reason.

    settings: those that ask for the checkpoint's own network or for other hardware, by name.
    """
    runtime = RUNTIMES[path.suffix]
    yield not_installed(str(path), runtime)
    for name, value in settings.items():
        if value not in (None, "auto", "cpu", "fp32"):
            yield f"--{name} {value}: {path} is scored by {runtime}, as it was exported, on the CPU"


def open_exported(path: Path) -> Exported:
    """Open a file of `export.py`. Raises UserError for anything else."""
    runtime = RUNTIMES[path.suffix]
    is_openvino = runtime == "openvino"
    files = [path, path.with_suffix(".bin")] if is_openvino else [path]
    contents = []
    for file in files:
        with reading_file(file, "cannot be read"):
            contents.append(file.read_bytes())
    # Each runtime has exceptions of its own for a damaged file.
    with reading_file(path, f"{runtime} cannot read it", Exception):
        score, side, text = openvino_graph(path) if is_openvino else onnx_graph(contents[0])
        description = json.loads(text or "null")
    if description is None:
        raise UserError(f"{path}: it has no description; expected a file that export.py wrote")
    if problem := problem_of_description(description):
        raise UserError(f"{path}: {problem}")
    exported = description.get("exported", {})
    # Of one export the two files belong together.
    if is_openvino and exported.get("weights") != hashlib.sha256(contents[1]).hexdigest():
        raise UserError(f"{path}: {files[1]} is not the file that was written with it")
    if side != description["patch_size"]:
        raise UserError(
            f"{path}: its patches have {side} pixels, but its description says "
            f"{description['patch_size']}"
        )
    return Exported(
        path,
        score,
        {**description, "described": True},
        f"{runtime}:{hashlib.sha256(b''.join(contents)).hexdigest()[:12]}",
        exported.get("precision", "fp32"),
    )


def onnx_graph(content: bytes) -> tuple[Scorer, int, str | None]:
    """(scorer, side of the patches, description as JSON or None) of an ONNX file's content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that spin while they wait would take the cores on which images are decoded.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    side = next(entry.shape[1] for entry in session.get_inputs() if entry.name == "patches")
    text = session.get_modelmeta().custom_metadata_map.get("hyperiqa")
    return lambda patches: session.run(["scores"], {"patches": patches})[0], side, text


def openvino_package() -> Any:
    """The package openvino, kept from sending statistics of its use to its makers."""
    # Without this package of its own it sends none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def openvino_graph(path: Path) -> tuple[Scorer, int, str | None]:
    """(scorer, side of the patches, description as JSON or None) of an .xml with its .bin."""
    openvino = openvino_package()
    graph = openvino.Core().read_model(path)
    # Some CPUs would compute in bf16 by default.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(graph, "CPU", settings)
    side = compiled.input("patches").get_partial_shape()[1].get_length()
    text = graph.get_rt_info(["hyperiqa"]).value if graph.has_rt_info(["hyperiqa"]) else None
    # The runtime uses the memory of its outputs again.
    return lambda patches: compiled({"patches": patches})["scores"].copy(), side, text
