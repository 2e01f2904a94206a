"""Train HyperIQA with a Swin Transformer backbone.

One process: a CPU or a GPU
python train_swin.py --dataset demo                            # no data, no network, two minutes on a CPU
python train_swin.py --dataset koniq-10k --ranking_loss_alpha 0.3 --use_multiscale
python train_swin.py --lr_scheduler step                       # the published procedure

One node, a process for each GPU; the batch is shared by all, the result is that of one
torchrun --nproc_per_node 8 train_swin.py --use_multiscale

Several nodes, on each of them
torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train_swin.py --use_multiscale

Slurm: a job that is queued again, and goes on, when its time is over
python train_swin.py --launcher slurm --nodes 4 --gpus_per_node 8 --time 24 --slurm partition=gpu"""  # noqa: E501  (it is the text of --help)

from hyperiqa.base.command_line import run_tool
from hyperiqa.datasets.readers import DEFAULT_RESIZE
from hyperiqa.training.flags import Script
from hyperiqa.training.launch import launch

SWINS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base"))
SCRIPT = Script(
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
        train_patch_num=5,
        epochs=10,
        batch_size=8,
    ),
)


def load_solver() -> type:
    from HyperIQASolver_swin import HyperIQASolverSwin

    return HyperIQASolverSwin


if __name__ == "__main__":
    run_tool(lambda: launch(__doc__, SCRIPT, load_solver))
