"""Write a trained model for ONNX, OpenVINO, safetensors, pyiqa or the Hub.

    python export.py checkpoints/NAME                    # ONNX beside the model
    python export.py best_model.pkl koniq.onnx --opset 20
    python export.py checkpoints/NAME koniq.xml          # OpenVINO, for CPUs
    python export.py checkpoints/NAME koniq.xml --int8 photos
    python export.py best_model.pkl koniq.safetensors    # tensors, description
    python export.py best_model.safetensors koniq.pkl    # as a state dict
    python export.py checkpoints/NAME koniq.pth --layout pyiqa
    python export.py checkpoints/NAME koniq.hub          # what --push uploads
    python export.py checkpoints/NAME --push user/name   # for hf://user/name
    python export.py x_adapter.safetensors koniq.pkl --base vit.safetensors

The ending of OUTPUT chooses the format, or --format does. The public HyperIQA
code loads the state dict of .pkl and .pth. The graph of .onnx, and of .xml with
its .bin, takes uint8 patches (N, P, P, 3) and gives scores (N,); predict.py
scores with these files too. They are written only where the runtime gives the
scores of PyTorch, with --int8 the same ranks. docs/using_models.md has more."""

import re
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperiqa.base import command_line, errors, files
from hyperiqa.scoring import image_sources, runtimes

if TYPE_CHECKING:
    from hyperiqa.scoring.quality_model import QualityModel

FORMATS = ("onnx", "xml", "safetensors", "pkl", "pth", "hub")

# Format -> the packages that it takes. OpenVINO reads the graph of ONNX.
NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "xml": ("onnx", "onnxscript", "openvino"),
}

# With fewer images, --int8 could not tell whether the ranks stay the same.
FEWEST_IMAGES = 20

# The exporter writes 18; older ones lack operators that it uses.
OPSETS = range(18, 24)

# The largest difference between a runtime's and PyTorch's scores, as a share of the score range.
TOLERANCE = 1e-4


def to_onnx(model: "QualityModel", opset: int) -> Any:
    """The model as an ONNX graph, from uint8 patches (N, P, P, 3) to scores (N,).

    The description of the model is in its metadata. Raises UserError if the exporter cannot write
    this opset, or not this model.
    """
    from hyperiqa.model.checkpoints import description_json

    proto = _onnx_program(model, opset).model_proto
    # The domain of ONNX's own operators is called "".
    written_opset = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if written_opset != opset:
        raise errors.UserError(f"--opset {opset}: this torch and onnxscript write {written_opset}")
    # The exporter leaves its stack traces, with paths of this machine.
    for part in (*proto.graph.node, *proto.graph.value_info):
        del part.metadata_props[:]
    proto.metadata_props.add(key="hyperiqa", value=description_json(model.description))
    return proto


def _onnx_program(model: "QualityModel", opset: int) -> Any:
    import torch

    class FromPatches(torch.nn.Module):
        # With the normalisation of the input in the graph.
        def __init__(self):
            super().__init__()
            self.net = model.net

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return self.net(self.net.backbone.normalised(patches))["scores"]

    side = model.description["patch_size"]
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecations between torch and onnxscript, none of the user's.
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                FromPatches().eval(),
                (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
                # torch 2.6 would still trace to TorchScript.
                dynamo=True,
                # torch 2.6 needs a bound.
                dynamic_shapes={"patches": {0: torch.export.Dim("N", max=2**31)}},
                input_names=["patches"],
                output_names=["scores"],
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError:
            raise errors.UserError(
                f"torch {torch.__version__} cannot export {model.description['backbone']}: use a "
                "newer torch (2.11 can)"
            ) from None


def sample_patches(side: int) -> np.ndarray:
    """Eight patches to compare scores on, uint8 (8, side, side, 3).

    Two of noise, four smooth scenes with less and less noise, a black and a white one.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, side, side, 3))
    waves = [_sum_of_waves(rng, side) for _ in range(4)]
    scenes = [wave * 60 + rng.uniform(60, 190, 3) for wave in waves]
    scenes = [scene + rng.normal(0, 30 / 2**i, (side, side, 3)) for i, scene in enumerate(scenes)]
    flat = [np.full((side, side, 3), value) for value in (0, 255)]
    return np.clip(np.stack([*noise, *scenes, *flat]), 0, 255).astype(np.uint8)


def _sum_of_waves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Waves in random directions, the faster the weaker, as in photographs: (side, side, 1)."""
    places = (np.mgrid[:side, :side] / side).reshape(2, -1)
    waves = [np.sin(rng.normal(0, 3 * k, 2) @ places + k) / k for k in range(1, 12)]
    return np.sum(waves, 0).reshape(side, side, 1)


def compare_scores(
    model: "QualityModel", score: runtimes.Scorer, output: Path, runtime: str
) -> str:
    """Compare a runtime's scores with PyTorch's, of batches of 1, 2 and 5 patches.

    Returns a line for the user. Raises UserError if they are not the same, or not finite.
    """
    import torch

    patches = sample_patches(model.description["patch_size"])
    with torch.no_grad():
        images = model.net.backbone.normalised(torch.from_numpy(patches))
        expected = model.net(images)["scores"].numpy()
    if not np.isfinite(expected).all():
        raise errors.UserError("the model's scores are not finite: its weights are broken")
    scores = [score(batch) for batch in np.split(patches, [1, 3])]
    difference = float(np.abs(np.concatenate(scores) - expected).max())
    low, high = model.description["score_range"]
    # A constant training set has no range.
    allowed = TOLERANCE * ((high - low) or 1)
    # In this form, a difference of nan is refused too.
    if not difference <= allowed:
        raise errors.UserError(
            f"{output}: not written: {runtime}'s scores differ by {difference:.2g} from PyTorch's, "
            f"allowed {allowed:.2g}"
        )
    return f"largest difference to PyTorch {difference:.2g}, allowed {allowed:.2g}"


def choose_output(
    checkpoint: Path, output: Path | None, file_format: str | None, force: bool
) -> tuple[Path, str]:
    """(where to write, format) from the flags and the model file.

    Raises UserError if the flags contradict each other, if a file is in the way, or if a package is
    missing.
    """
    if file_format is None:
        file_format = output.suffix.removeprefix(".") if output else "onnx"
    if file_format not in FORMATS:
        raise errors.UserError(
            f"{output}: expected OUTPUT to end with .{', .'.join(FORMATS)}, or --format"
        )
    output = output or checkpoint.with_name(f"{checkpoint.stem}.{file_format}")
    if output.suffix != f".{file_format}":
        raise errors.UserError(f"contradictory: --format {file_format} and {output.name}")
    if output.exists() and output.resolve() == checkpoint.resolve():
        raise errors.UserError(f"{output}: is the checkpoint itself; name another OUTPUT")
    if output.is_dir() and file_format != "hub":
        raise errors.UserError(f"{output}: is a folder; expected a file's name")
    if not files.can_write(output):
        raise errors.UserError(f"{output}: cannot be written there")
    written = [output, output.with_suffix(".bin")] if file_format == "xml" else [output]
    for path in written:
        if path.exists() and not force:
            raise errors.UserError(f"{path}: exists already; name another OUTPUT or add --force")
    if missing := errors.not_installed(f"--format {file_format}", *NEEDED.get(file_format, ())):
        raise errors.UserError(missing)
    return output, file_format


def parse(argv: Sequence[str] | None) -> Namespace:
    """The flags, checked all together. Raises UserError."""
    flags = command_line.Flags(__doc__, "%(prog)s CHECKPOINT [OUTPUT] [flags]")
    flags.checkpoint()
    flags.words(
        "output",
        "file or folder to write (default: beside the model file)",
        metavar="OUTPUT",
        type=Path,
        nargs="?",
    )
    flags.value(
        "--format", None, "format of OUTPUT (default: by its ending, else onnx)", choices=FORMATS
    )
    flags.value(
        "--layout",
        None,
        "write .pth or .pkl under the names of pyiqa's HyperNet, which then loads it",
        choices=["pyiqa"],
    )
    flags.count("--opset", OPSETS[0], "version of the ONNX operators", OPSETS[0], OPSETS[-1])
    flags.path(
        "--base",
        None,
        "merge CHECKPOINT, an adapter that a run with --lora left, into its encoder; "
        "the file holds the encoder's weights, of timm or in a model trained here",
    )
    flags.value(
        "--int8",
        [],
        "for .xml: compute the encoder in 8 bits; photographs like those to be scored, by which it "
        "is adapted and its ranks are checked",
        metavar="IMAGE|FOLDER|GLOB",
        nargs="+",
    )
    flags.switch("--force", "force", True, "replace OUTPUT if it exists")
    flags.group("Hugging Face Hub")
    flags.value(
        "--push",
        None,
        "upload the model to this repository, and create it if there is none",
        ("USER/NAME", lambda name: re.fullmatch(r"[\w.-]+/[\w.-]+", name)),
        metavar="USER/NAME",
    )
    flags.switch("--private", "private", True, "create the repository as a private one")
    return flags.parse(argv, _problems)


def _problems(options: Namespace, given: command_line.Given) -> list[str]:
    ending = Path(options.output or "").suffix
    rules = [
        (
            options.push and (options.output or options.format),
            "contradictory flags: --push uploads the model; OUTPUT and --format write it here",
        ),
        (
            options.layout and ending not in (".pth", ".pkl"),
            f"--layout {options.layout}: expected an OUTPUT that ends with .pth or .pkl",
        ),
        (options.int8 and ending != ".xml", "--int8: expected an OUTPUT that ends with .xml"),
        (options.int8, errors.not_installed("--int8", "openvino", "nncf")),
        (
            options.base and not files.exists_or_on_hub(options.base),
            f"--base {options.base}: no such file",
        ),
        (options.private and not options.push, "--private needs --push"),
    ]
    return [message for is_broken, message in rules if is_broken]


def write(model: "QualityModel", output: Path, file_format: str, options: Namespace) -> None:
    """Write the model in one of FORMATS, and print what was written. Raises UserError."""
    from hyperiqa.model import checkpoints, foreign

    if file_format == "hub":
        from hyperiqa.scoring import hub

        hub.write_folder(output, model, f"USER/{output.stem}")
        print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
        return
    note = ""
    state = checkpoints.portable_state(model.net, model.description)
    if file_format == "onnx":
        data = to_onnx(model, options.opset).SerializeToString()
        difference = compare_scores(model, runtimes.onnx_graph(data)[0], output, "onnxruntime")
        files.write_whole(output, data)
        note = f": opset {options.opset}; {difference}"
    elif file_format == "xml":
        from hyperiqa.scoring import openvino_export

        data = to_onnx(model, options.opset).SerializeToString()
        check = partial(compare_scores, model, output=output, runtime="OpenVINO")
        note = ": " + openvino_export.write_openvino(model, data, output, check, options.int8)
    elif options.layout:
        checkpoints.save(output, foreign.pyiqa_content(state, model.description))
        low, high = model.description["score_range"]
        note = f": in pyiqa's layout; the scores stay on {low:g} to {high:g}"
    elif file_format == "safetensors":
        checkpoints.save_safetensors(output, state, model.description)
    else:
        checkpoints.save(output, state)
    size = output.stat().st_size
    if file_format == "xml":
        size += output.with_suffix(".bin").stat().st_size
    print(f"{output} ({size / 1e6:.1f} MB){note}")


def main(argv: list[str] | None = None) -> None:
    """Write or upload the model, as the arguments say."""
    options = parse(argv)
    options.int8 = image_sources.find_images(options.int8)
    if 0 < len(options.int8) < FEWEST_IMAGES:
        raise errors.UserError(
            f"--int8: {errors.counted(len(options.int8), 'image')}; expected at least "
            f"{FEWEST_IMAGES}"
        )
    # torch is imported only once the flags are known to be right.
    from hyperiqa.base.device import choose_hardware
    from hyperiqa.model import lora
    from hyperiqa.model.checkpoints import find_model
    from hyperiqa.scoring.quality_model import QualityModel, load

    checkpoint = find_model(options.checkpoint)
    if not options.push:
        # Nothing of ours is to lie in the Hub's cache.
        output, file_format = choose_output(
            checkpoint if options.checkpoint.exists() else Path(checkpoint.name),
            options.output,
            options.format,
            options.force,
        )
    if options.base:
        merged = lora.load_merged(checkpoint, options.base)
        model = QualityModel(*merged, choose_hardware("cpu"))
    else:
        model = load(checkpoint, device="cpu")
    if not model.description["described"]:
        print(
            f"{options.checkpoint}: the file has no description; it gets the one of a public model "
            "that was trained on KonIQ-10k"
        )
    if options.push:
        from hyperiqa.scoring import hub

        with tempfile.TemporaryDirectory(prefix="push_") as folder:
            hub.write_folder(Path(folder), model, options.push)
            print(hub.push(Path(folder), options.push, options.private))
    else:
        write(model, output, file_format, options)


if __name__ == "__main__":
    command_line.run_tool(main)
