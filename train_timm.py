"""Train HyperIQA on any encoder of timm, by its name there, with or without tag.

python train_timm.py --dataset demo                            # no data, no network, ImageNet weights, two minutes
python train_timm.py --dataset koniq-10k --backbone convnext_tiny
python train_timm.py --backbone vit_base_patch16_siglip_224.v2_webli --freeze_backbone --fixed_crops
python train_timm.py --init checkpoints/NAME --dataset csv --dataset_path mine.csv  # train further on own images

Several processes, several nodes, Slurm: as train_swin.py."""  # noqa: E501  (it is the text of --help)

from hyperiqa.base.cluster import submitted
from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training.flags import Script
from hyperiqa.training.options import train_options

SCRIPT = Script(
    backbones=("tf_efficientnet_lite0",),
    # Every name starts with it: any model of timm is accepted.
    any_backbone="",
    datasets=DEFAULT_RESIZE,
    # The demo shows a whole run within minutes on a CPU: few patches and epochs.
    demo=dict(lr=1e-4, lr_ratio=5.0, train_patch_num=4, epochs=3, batch_size=16),
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
