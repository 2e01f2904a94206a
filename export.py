"""Write a trained model as ONNX for deployment, or as safetensors or a portable state dict.

    python export.py checkpoints/NAME                        # a run's best model -> .onnx beside it
    python export.py best_model.pkl koniq.onnx --opset 20
    python export.py koniq_pretrained.pkl koniq.safetensors  # of the public code, now with a description
    python export.py koniq_pretrained.pkl koniq.pkl          # tensors that the public code loads as well
    python export.py checkpoints/NAME koniq.hub              # a folder, as --push uploads it
    python export.py checkpoints/NAME --push user/name       # to the Hugging Face Hub: hf://user/name

The format is OUTPUT's suffix, or --format. The ONNX graph takes uint8 patches (N, P, P, 3) and gives scores (N,); what
cuts them is in its metadata, and docs/using_models.md shows how. It is written only where it scores as PyTorch does."""

import re
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hyperiqa.base.command_line import Flags, Given, run_tool
from hyperiqa.base.errors import UserError, not_installed
from hyperiqa.base.files import write_whole

FORMATS = ("onnx", "safetensors", "pkl", "hub")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 24)  # the exporter writes 18; older ones lack operators that it uses
TOLERANCE = 1e-4  # of the score range


def to_onnx(model: Any, opset: int) -> Any:
    """The model as an ONNX graph, from uint8 patches (N, P, P, 3) to scores (N,), with its description as metadata.
    Raises UserError where the exporter cannot write this opset."""
    import torch

    from hyperiqa.model.checkpoints import description_json

    class FromPatches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model.net

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return self.net(self.net.backbone.normalised(patches))["scores"]

    side, backbone = model.description["patch_size"], model.description["backbone"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # deprecations between torch and onnxscript, none of the user's
        try:
            program = torch.onnx.export(
                FromPatches().eval(),
                (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
                dynamo=True,  # torch 2.6 would still trace to TorchScript
                dynamic_shapes={
                    "patches": {0: torch.export.Dim("N", max=2**31)}
                },  # torch 2.6 needs a bound
                input_names=["patches"],
                output_names=["scores"],
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError:
            said = (
                f"torch {torch.__version__} cannot export {backbone}: use a newer torch (2.11 can)"
            )
            raise UserError(said) from None
    proto = program.model_proto
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if found != opset:
        raise UserError(f"--opset {opset}: this torch and onnxscript write {found}")
    for part in (
        *proto.graph.node,
        *proto.graph.value_info,
    ):  # the exporter's stack traces, with this machine's paths
        del part.metadata_props[:]
    proto.metadata_props.add(key="hyperiqa", value=description_json(model.description))
    return proto


def sample_patches(side: int) -> np.ndarray:
    """Eight patches to compare on: uint8 (8, side, side, 3): noise, scenes with less and less of it, black, white."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, side, side, 3))
    places = (np.mgrid[:side, :side] / side).reshape(2, -1)
    waves = [
        np.sum([np.sin(rng.normal(0, 3 * k, 2) @ places + k) / k for k in range(1, 12)], 0)
        for _ in "1234"
    ]
    scenes = [wave.reshape(side, side, 1) * 60 + rng.uniform(60, 190, 3) for wave in waves]
    scenes = [scene + rng.normal(0, 30 / 2**i, (side, side, 3)) for i, scene in enumerate(scenes)]
    flat = [np.full((side, side, 3), value) for value in (0, 255)]
    return np.clip(np.stack([*noise, *scenes, *flat]), 0, 255).astype(np.uint8)


def largest_difference(model: Any, data: bytes) -> float:
    """Between onnxruntime's scores of the ONNX file `data` and PyTorch's, in batches of 1, 2 and 5 patches."""
    import onnxruntime
    import torch

    patches = sample_patches(model.description["patch_size"])
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model.net(model.net.backbone.normalised(torch.from_numpy(patches)))[
            "scores"
        ].numpy()
    found = [session.run(["scores"], {"patches": part})[0] for part in np.split(patches, [1, 3])]
    if not np.isfinite(expected).all():
        raise UserError("the model's scores are not finite: its weights are broken")
    return float(np.abs(np.concatenate(found) - expected).max())


def write_onnx(model: Any, output: Path, opset: int) -> str:
    """Export, compare, and only then write the file; returns what to tell the user."""
    data = to_onnx(model, opset).SerializeToString()
    low, high = model.description["score_range"]
    difference, allowed = largest_difference(model, data), TOLERANCE * ((high - low) or 1)
    if not difference <= allowed:
        raise UserError(
            f"{output}: not written: onnxruntime's scores differ by {difference:.2g} from PyTorch's"
        )
    write_whole(output, data)
    return f"opset {opset}; largest difference to PyTorch {difference:.2g}, allowed {allowed:.2g}"


def chosen_output(
    checkpoint: Path, output: Path | None, form: str | None, force: bool
) -> tuple[Path, str]:
    """(where to write, format) from the flags; UserError where they contradict each other or a file is in the way."""
    form = form or (output.suffix.removeprefix(".") if output else "onnx")
    if form not in FORMATS:
        raise UserError(
            f"{output}: expected OUTPUT to end with .{', .'.join(FORMATS)}, or --format"
        )
    output = output or checkpoint.with_name(f"{checkpoint.stem}.{form}")
    if output.suffix != f".{form}":
        raise UserError(f"contradictory: --format {form} and {output.name}")
    if output.exists() and output.resolve() == checkpoint.resolve():
        raise UserError(f"{output}: is the checkpoint itself; name another OUTPUT")
    if output.is_dir() and form != "hub":
        raise UserError(f"{output}: is a folder; expected a file's name")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; name another OUTPUT or add --force")
    if form == "onnx" and (missing := not_installed("--format onnx", *NEEDED)):
        raise UserError(missing)
    return output, form


def _problems(options: Namespace, given: Given) -> Iterator[str]:
    if options.push and (options.output or options.format):
        yield "contradictory flags: --push uploads the model; OUTPUT and --format write it here"
    if options.private and not options.push:
        yield "--private needs --push"


def to_hub(model: Any, folder: Path, repo: str) -> None:
    from hyperiqa.scoring import hub

    hub.write_folder(folder, model, repo)
    if words := hub.private_words(model.description):
        print(f"Paths in its certificate, which go with it: {' '.join(words)}")


def main(argv: list[str] | None = None) -> None:
    flags = Flags(__doc__, "%(prog)s CHECKPOINT [OUTPUT] [flags]")
    flags.checkpoint()
    flags.words("output", "default: beside the model file", metavar="OUTPUT", type=Path, nargs="?")
    flags.value("--format", None, "default: OUTPUT's suffix, else onnx", choices=FORMATS)
    flags.count("--opset", OPSETS[0], "of the ONNX operators", OPSETS[0], OPSETS[-1])
    flags.switch("--force", "force", True, "replace OUTPUT if it exists")
    flags.group("Hugging Face Hub")
    repo = ("USER/NAME", lambda name: re.fullmatch(r"[\w.-]+/[\w.-]+", name))
    flags.value(
        "--push",
        None,
        "upload the model to this repository, which is made if there is none",
        repo,
        metavar="USER/NAME",
    )
    flags.switch("--private", "private", True, "make the repository a private one")
    options = flags.parse(argv, _problems)
    # torch is imported only once the flags are known to be right.
    from hyperiqa.model.checkpoints import find_model, portable_state, save, save_safetensors

    checkpoint = find_model(options.checkpoint)
    output, form = None, "hub"
    if not options.push:
        output, form = chosen_output(checkpoint, options.output, options.format, options.force)
    from hyperiqa.scoring.quality_model import load

    model, about = load(checkpoint, device="cpu"), ""
    if not model.description["described"]:
        print(
            f"{checkpoint}: no description in it; described as the public code uses such a model, on KonIQ-10k"
        )
    if options.push:
        from hyperiqa.scoring.hub import push

        with tempfile.TemporaryDirectory(prefix="push_") as folder:
            to_hub(model, Path(folder), options.push)
            print(push(Path(folder), options.push, options.private))
        return
    if form == "hub":
        to_hub(model, output, f"USER/{output.stem}")
        print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
        return
    if form == "onnx":
        about = ": " + write_onnx(model, output, options.opset)
    elif form == "safetensors":
        save_safetensors(output, portable_state(model.net), model.description)
    else:
        save(output, portable_state(model.net, model.description))
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB){about}")


if __name__ == "__main__":
    run_tool(main)
