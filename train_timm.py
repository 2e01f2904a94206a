"""Train HyperIQA with any encoder of timm, by its name there.

    python train_timm.py --dataset demo                # without data or network
    python train_timm.py --dataset koniq-10k --backbone convnext_tiny
    python train_timm.py --backbone vit_base_patch16_siglip_224.v2_webli \\
        --freeze_backbone --fixed_crops
    python train_timm.py --init checkpoints/NAME --dataset csv \\
        --dataset_path mine.csv                        # go on with own images

Several GPUs, several machines and Slurm work as with train_swin.py."""

from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training import flags, launch

SCRIPT = flags.Script(
    backbones=("tf_efficientnet_lite0",),
    # Every name starts with it: any model of timm is accepted.
    any_backbone="",
    datasets=DEFAULT_RESIZE,
    # The demo takes minutes on a CPU, and its model has to judge photographs too: the encoder stays
    # as it learnt them, its early stages count, and small patches show little of a scene.
    demo=dict(
        freeze_backbone=True,
        fixed_crops=True,
        fusion="direct",
        patch_size=112,
        dropout=0.1,
        ema=0.98,
        lr=2e-4,
        lr_ratio=5.0,
        train_patch_num=3,
        epochs=4,
        batch_size=16,
        test_crop="grid",
        test_patch_num=12,
    ),
)


if __name__ == "__main__":
    run_tool(lambda: launch.launch(__doc__, SCRIPT, "HyperIQASolver:HyperIQASolver"))
