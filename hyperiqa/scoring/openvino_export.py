"""A model as OpenVINO's two files, in fp32 or quantised to int8.

The files are written only if the model that is read back from them was found to score as it should.
"""

import hashlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.errors import UserError, counted, reading_file
from hyperiqa.model.checkpoints import description_json
from hyperiqa.scoring import quality_model, runtimes
from hyperiqa.stats.metrics import srcc

# Of how many images the ranges of the activations are taken; NNCF's default.
CALIBRATION_IMAGES = 300
# The smallest SRCC between the scores of int8 and of fp32.
SAME_RANKS = 0.995


def write_openvino(
    model: quality_model.QualityModel,
    onnx: bytes,
    output: Path,
    check: Callable[[runtimes.Scorer], str],
    images: Sequence[str] = (),
) -> str:
    """Write OUTPUT.xml and OUTPUT.bin, or neither.

    onnx: the model as an ONNX file. check: raises UserError where the scores of fp32 are not the
    model's, else returns a line for the user. images: quantise to int8, by these images, and check
    their ranks. Returns the line. Raises UserError.
    """
    openvino = runtimes.openvino_package()
    graph = openvino.Core().read_model(onnx)
    if images:
        graph = quantised(graph, model, images)
    with reading_file(output, "cannot be written", RuntimeError):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".tmp", f".{output.name}.", output.parent) as folder:
            draft = Path(folder, output.name)
            weights = draft.with_suffix(".bin")
            openvino.save_model(graph, draft, compress_to_fp16=False)
            # The .xml names the .bin that belongs to it, so it is written once more.
            exported = {
                "precision": "int8" if images else "fp32",
                "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
            }
            graph.set_rt_info(
                description_json({**model.description, "exported": exported}), ["hyperiqa"]
            )
            openvino.save_model(graph, draft, compress_to_fp16=False)
            written = runtimes.open_exported(draft)
            if images:
                note = check_ranks(model, quality_model.ExportedModel(written), output, images)
            else:
                note = check(written.score)
            weights.replace(output.with_suffix(".bin"))
            draft.replace(output)
    return note


def quantised(graph: Any, model: quality_model.QualityModel, images: Sequence[str]) -> Any:
    """The graph with its encoder in int8, by NNCF's quantisation after training.

    The rest computes a few percent, and its errors would move every score: it stays in fp32. The
    ranges of the activations are taken from some of the images. Raises UserError for an image that
    cannot be read.
    """
    # Spread over all of them: a folder is often sorted.
    step = -(-len(images) // CALIBRATION_IMAGES)
    try:
        patches = [model.patches(image) for image in images[::step]]
    except ValueError as problem:
        raise UserError(f"--int8: {problem}") from None
    has_attention = any(node.get_type_name() == "Softmax" for node in graph.get_ops())
    # NNCF would send statistics of its use to its makers.
    os.environ["NNCF_CI"] = "1"
    # It tells every step, and its import makes torch warn of CUDA.
    logging.disable(logging.WARNING)
    with redirect_stdout(io.StringIO()):
        import nncf

        graph = nncf.quantize(
            graph,
            nncf.Dataset(patches),
            subset_size=len(patches),
            model_type=nncf.ModelType.TRANSFORMER if has_attention else None,
            ignored_scope=nncf.IgnoredScope(
                names=nodes_after_encoder(graph, model), validate=False
            ),
        )
    logging.disable(logging.NOTSET)
    return graph


def nodes_after_encoder(graph: Any, model: quality_model.QualityModel) -> list[str]:
    """The names of the graph's nodes that depend on weights outside the encoder."""
    encoder = re.compile(rf"net\.{model.net.places['backbone']}\.(?!lda)")
    names: dict[str, None] = {}
    # The nodes come in the order of computing.
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        is_weight = name.startswith("net.") and node.get_type_name() == "Constant"
        inputs = (value.get_node().get_friendly_name() for value in node.input_values())
        if (is_weight and not encoder.match(name)) or any(source in names for source in inputs):
            names[name] = None
    return list(names)


def check_ranks(
    model: quality_model.QualityModel,
    exported: quality_model.ExportedModel,
    output: Path,
    images: Sequence[str],
) -> str:
    """Compare the ranks and scores of images by the int8 model with those by the checkpoint's.

    Returns a line for the user. Raises UserError where the ranks differ too much, and for an image
    that cannot be read.
    """
    scores = []
    for scorer in (model, exported):
        scored = list(scorer.score_all(images))
        for failed in (image for image in scored if image.problem):
            raise UserError(f"--int8: {failed.image!s}: {failed.problem}")
        scores.append(np.array([image.score for image in scored]))
    agreement = srcc(*scores)
    difference = np.abs(scores[1] - scores[0])
    text = (
        f"int8; SRCC {agreement:.4f} with fp32 on {counted(len(images), 'image')}, at least "
        f"{SAME_RANKS} is asked for; scores differ by {difference.mean():.2g} on average, "
        f"{difference.max():.2g} at most"
    )
    # In this form, an undefined correlation is refused too.
    if not agreement >= SAME_RANKS:
        raise UserError(
            f"{output}: not written: {text}; more photographs, and more varied ones, may help; "
            "without --int8 the file keeps the scores"
        )
    return text
