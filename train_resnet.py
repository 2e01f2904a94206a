"""Train HyperIQA with a ResNet backbone.

python train_resnet.py --dataset demo                          # no data, no network, a few minutes on a CPU
python train_resnet.py --dataset koniq-10k --lr_scheduler step # the published baseline

Several processes, several nodes, Slurm: as train_swin.py."""

from hyperiqa.base.cluster import submitted
from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options

SCRIPT = Script(
    backbones=("resnet50", "resnet18", "resnet34", "resnet101"),
    datasets=DEFAULT_RESIZE,
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
    if submitted(options := train_options(None, __doc__, SCRIPT)):
        return
    from hyperiqa.training import processes  # torch: only once the flags are known to be right
    from HyperIQASolver import HyperIQASolver

    with processes.process_group():
        HyperIQASolver(options).run()


if __name__ == "__main__":
    run_tool(main)
