"""Train HyperIQA with a Swin Transformer as its encoder.

One process, on a CPU or a GPU:
    python train_swin.py --dataset demo                # without data or network
    python train_swin.py --dataset koniq-10k --fusion concat
    python train_swin.py @recipes/smart_iqa.txt        # flags from a file

One machine with eight GPUs; the batch is shared, and the result is the same:
    torchrun --nproc_per_node 8 train_swin.py --fusion concat

Several machines, with this command on each of them:
    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d \\
        --rdzv_endpoint HOST:29500 train_swin.py --fusion concat

Slurm, as a job that is queued again and goes on when its time is over:
    python train_swin.py --launcher slurm --nodes 4 --gpus_per_node 8 --time 24"""

from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training import flags, launch

SWINS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base"))
SCRIPT = flags.Script(
    backbones=(*SWINS, "swin_nano", "swin_pico"),
    any_backbone="swin",
    datasets=DEFAULT_RESIZE,
    # The demo shows a whole run within minutes on a CPU: a small model, few and small patches.
    demo=dict(
        backbone="swin_pico",
        pretrained=False,
        patch_size=128,
        fusion="direct",
        ranking_loss_alpha=0.5,
        lr=1e-3,
        lr_ratio=1.0,
        lr_scheduler="cosine_step",
        warmup_epochs=1,
        drop_path=0.0,
        train_patch_num=1,
        epochs=10,
        batch_size=8,
    ),
)


if __name__ == "__main__":
    run_tool(lambda: launch.launch(__doc__, SCRIPT, "HyperIQASolver_swin:HyperIQASolverSwin"))
