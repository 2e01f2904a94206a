"""Train HyperIQA with a ResNet backbone.

python train_resnet.py --dataset demo                          # no data, no network, a few minutes on a CPU
python train_resnet.py --dataset koniq-10k --lr_scheduler step # the published baseline

Several processes, several nodes, Slurm: as train_swin.py."""  # noqa: E501  (it is the text of --help)

from hyperiqa.base.cluster import submitted
from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options

SCRIPT = Script(
    backbones=("resnet50", "resnet18", "resnet34", "resnet101"),
    datasets=DEFAULT_RESIZE,
    # The demo shows a whole run within minutes on a CPU: a small model, few patches.
    demo=dict(
        backbone="resnet18",
        pretrained=False,
        lr=2e-4,
        lr_ratio=1.0,
        train_patch_num=4,
        epochs=6,
        batch_size=16,
    ),
)


def main() -> None:
    """Check the flags, then train here, or as a job of a cluster."""
    options = train_options(None, __doc__, SCRIPT)
    if submitted(options):
        return
    # These import torch, which takes seconds: a mistake in the flags is reported before.
    from hyperiqa.training import processes
    from HyperIQASolver import HyperIQASolver

    with processes.process_group():
        HyperIQASolver(options).run()


if __name__ == "__main__":
    run_tool(main)
