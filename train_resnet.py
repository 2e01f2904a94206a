"""Train HyperIQA with a ResNet as its encoder.

    python train_resnet.py --dataset demo              # without data or network
    python train_resnet.py --dataset koniq-10k
    python train_resnet.py @recipes/hyperiqa.txt       # the published procedure

Several GPUs, several machines and Slurm work as with train_swin.py."""

from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training import flags, launch

SCRIPT = flags.Script(
    backbones=("resnet50", "resnet18", "resnet34", "resnet101"),
    datasets=DEFAULT_RESIZE,
    # The demo shows a whole run within minutes on a CPU: a small model, few patches.
    demo=dict(
        backbone="resnet18",
        pretrained=False,
        lr=2e-4,
        lr_ratio=1.0,
        train_patch_num=1,
        epochs=6,
        batch_size=16,
    ),
)


if __name__ == "__main__":
    run_tool(lambda: launch.launch(__doc__, SCRIPT, "HyperIQASolver:HyperIQASolver"))
