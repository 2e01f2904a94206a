"""Tables of what models and training steps cost, from what `costs` measured.

Nothing here needs torch, so that showing figures does not wait for its import.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The parts of a training step, in their order.
STEP_PARTS = ("data", "forward", "loss", "backward", "optimizer", "records")
# The parts of a model, in the order of its data.
MODEL_PARTS = ("backbone", "fusion", "hyper", "target", "head")
STEP_HEADER = [
    "backbone",
    "processes",
    "patches/s",
    "ms whole",
    *STEP_PARTS,
    "waits",
    "TFLOP/s",
    "used",
    "MiB",
]

SCORE_HEADER = [
    "model",
    "photographs",
    "scored/s",
    "bound",
    "of bound",
    "decoded/s",
    "forward/s",
    *(f"% {part}" for part in ("decode", "resize", "forward", "write")),
]


def score_row(model: str, photographs: str, seconds: Mapping[str, float]) -> list[str]:
    """A row under SCORE_HEADER. seconds: from `throughput.measure_scoring`."""
    bound = 1 / (seconds["prepare"] + seconds["forward"])
    resize = seconds["prepare"] - seconds["decode"]
    parts = (seconds["decode"], resize, seconds["forward"], seconds["write"])
    rates = (1 / seconds["whole"], bound, 1 / seconds["prepare"], 1 / seconds["forward"])
    scored, most, decoded, forward = (f"{rate:.3g}" for rate in rates)
    shares = [f"{100 * part / sum(parts):.2g}" for part in parts]
    return [
        model,
        photographs,
        scored,
        most,
        f"{1 / seconds['whole'] / bound:.2f}",
        decoded,
        forward,
        *shares,
    ]


def step_row(backbone: str, process_count: int, times: Mapping[str, Any]) -> list[str]:
    """A row under STEP_HEADER. times: from `costs.measure_parts`, with the peak memory."""
    milliseconds = [f"{1000 * times[part]:.4g}" for part in ("whole", *STEP_PARTS)]
    # A step waits for data, records or other processes while the device has no work.
    on_device = sum(times[part] for part in ("forward", "loss", "backward", "optimizer"))
    waits = max(0.0, times["whole"] - on_device)
    return [
        backbone,
        str(process_count),
        f"{times['patches']:.4g}",
        *milliseconds,
        f"{1000 * waits:.4g}",
        f"{times['matrix'] / 1e12:.3g}",
        f"{times['used']:.1%}",
        f"{times['peak memory']:.0f}",
    ]


def cost_header(costs: Mapping[str, Any]) -> list[str]:
    """The header of a table of `cost_rows`."""
    latencies = [f"ms, batch {batch}" for batch in costs["seconds"]]
    memory = "GPU MiB" if "peak GPU memory" in costs else "MiB"
    return ["model", "part", "M parameters", "GMACs", "GFLOP", *latencies, memory]


def cost_rows(name: str, costs: Mapping[str, Any]) -> list[list[str]]:
    """A row for the whole model, with latency and memory, then one for each part that has a cost.

    costs: from `costs.measure_model`, with the peak memory.
    """
    parameters = costs["parameters"]
    macs = costs["macs"]
    whole = [
        f"{name} @{costs['patch_size']}",
        "all",
        *_counts(sum(parameters.values()), sum(macs.values())),
    ]
    for seconds in costs["seconds"].values():
        low, median, high = np.percentile(seconds, (5, 50, 95)) * 1000
        whole.append(f"{median:.4g} ({low:.4g}-{high:.4g})")
    whole.append(f"{costs.get('peak GPU memory', costs['peak memory']):.0f}")
    rows = [whole]
    for part in MODEL_PARTS:
        if parameters.get(part) or macs.get(part):
            cells = ["", part, *_counts(parameters[part], macs[part])]
            # Latency and memory are measured only for the whole model.
            rows.append(cells + [""] * (len(whole) - len(cells)))
    return rows


def _counts(parameters: int, macs: int) -> list[str]:
    # Millions of parameters, GMACs and GFLOP; a multiply-accumulate is two operations.
    return [f"{count:.4g}" for count in (parameters / 1e6, macs / 1e9, 2 * macs / 1e9)]


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table for a paper, in the style of booktabs, with a rule above each model."""
    # Only a model's first row has its name.
    lines = [("\\midrule\n" if row[0] else "") + _latex_line(row) for row in rows]
    begin = rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}"
    end = [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([begin, r"\toprule", _latex_line(header), *lines, *end])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells).replace("_", r"\_") + r" \\"
