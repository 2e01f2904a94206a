"""The excerpts have the form of real logs of the public code; the figures of the rows are copied from such."""

import time

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.runs.old_logs import read_log

BAR = "\r{0}:  50%|█████     | 734/1468 [01:48<01:48,  6.80batch/s]\r{0}: 100%|██████████| 1468/1468 [{1}<00:00,  6.78batch/s]\n"
START = """Training and testing on koniq-10k dataset for 1 rounds...
Using Swin Transformer backbone
KonIQ-10k: 7046 train images, 2010 test images
Round 1
  Train: 7046 images, Test: 2010 images
Using device: cuda
Backbone: Swin Transformer Tiny
  Loading images: 100%|██████████| 7046/7046 [01:22<00:00, 85.13img/s]
  SPAQ dataset initialized: 2224 images, 44480 patches
"""
RANKING = "Ranking loss enabled: alpha=0.3, margin=0.1\n"
HEADER = "Epoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\tSPAQ_SRCC\tSPAQ_PLCC\n"
ROW1 = "1\t5.042 (L1:4.848,Rank:0.646)\t0.8834\t0.9184\t0.9329\t0.8646\t0.8590\n"
ROW2 = "2\t3.091 (L1:2.999,Rank:0.307)\t0.9559\t0.9176\t0.9309\t0.8572\t0.8544\n"
MIXED = "1\t4.850\t\t0.8823\t\t0.9193\t\t0.9346\t0.8621\t0.8603\n"
MEDIAN = "Best test SRCC 0.918430, PLCC 0.932880\nTesting median SRCC 0.9184,\tmedian PLCC 0.9329\n"


def epoch_bars(number):
    return (
        BAR.format(f"Epoch {number}/2", "03:36")
        + BAR.format("Testing", "04:59")
        + BAR.format("  SPAQ", "05:31")
    )


@pytest.fixture
def read(tmp_path):
    def read_text(text, name="swin_multiscale_ranking_alpha0.3_20251215_220614"):
        path = tmp_path / f"{name}.log"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        run, *epochs, end = read_log(path)
        return run, epochs, end

    return read_text


def test_a_whole_public_log(read):
    text = (
        START
        + RANKING
        + HEADER
        + epoch_bars(1)
        + ROW1
        + "  Model saved to: /x.pkl\n"
        + epoch_bars(2)
        + ROW2
    )
    run, epochs, end = read(text + MEDIAN)
    assert run["flags"] == {
        "dataset": "koniq-10k",
        "fusion": "concat",
        "backbone": "swin_tiny_patch4_window7_224",
        "ranking_loss_alpha": 0.3,
        "ranking_loss_margin": 0.1,
        "epochs": 2,
        "ranking_loss_form": "additive",
    }
    assert run["data"] == {"train": 7046, "test": 2010, "spaq": 2224}
    assert epochs[0] == {
        "type": "epoch",
        "round": 1,
        "epoch": 1,
        "train": {"loss": 5.042, "l1": 4.848, "rank": 0.646, "srcc": 0.8834},
        "test": {"srcc": 0.9184, "plcc": 0.9329},
        "spaq": {"srcc": 0.8646, "plcc": 0.8590},
        # 3:36 + 4:59 + 5:31; the image loading before the header is no part of an epoch.
        "seconds": {"bars": 846},
    }
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert epochs[1]["seconds"] == {"bars": 846}
    assert end["status"] == "finished"


def test_single_and_double_tabs_and_no_ranking_loss(read):
    _, (epoch,), _ = read(START + HEADER + MIXED)
    assert epoch["train"] == {"loss": 4.850, "srcc": 0.8823}
    assert epoch["test"] == {"srcc": 0.9193, "plcc": 0.9346}
    assert epoch["spaq"] == {"srcc": 0.8621, "plcc": 0.8603}


def test_a_loss_of_three_parts(read):
    row = ROW1.replace("(L1:4.848,Rank:0.646)", "(L1:4.8,Rank:0.6,Plcc:0.1)")
    _, (epoch,), _ = read(START + RANKING + HEADER + row)
    assert epoch["train"] == {"loss": 5.042, "l1": 4.8, "rank": 0.6, "plcc": 0.1, "srcc": 0.8834}


def test_header_without_spaq_and_resnet_by_default(read):
    text = "Training and testing on livec dataset for 1 rounds...\nEpoch\tTrain_Loss\tTrain_SRCC\tTest_SRCC\tTest_PLCC\n"
    run, (epoch,), _ = read(
        text + "1\t5.477\t\t0.8613\t\t0.9000\t\t0.9191\n", "resnet50_20251215_191130"
    )
    assert (run["flags"]["backbone"], run["flags"]["dataset"], run["flags"]["fusion"]) == (
        "resnet50",
        "livec",
        "none",
    )
    assert "spaq" not in epoch
    assert "seconds" not in epoch
    assert epoch["test"] == {"srcc": 0.9, "plcc": 0.9191}


def test_header_with_train_plcc_and_validation(read):
    header = "Epoch\tTrain_Loss\tTrain_SRCC\tTrain_PLCC\tVal_SRCC\tVal_PLCC\tTest_SRCC\tTest_PLCC\n"
    _, (epoch,), _ = read(header + "3\t2.5\t0.1\t0.2\t0.3\t0.4\t0.5\tnan\n")
    assert epoch["train"] == {"loss": 2.5, "srcc": 0.1, "plcc": 0.2}
    assert epoch["val"] == {"srcc": 0.3, "plcc": 0.4}
    assert epoch["test"] == {"srcc": 0.5, "plcc": None}


def test_row_on_the_line_of_an_unfinished_bar(read):
    bar = "\rTesting:  99%|█████████▉| 40102/40200 [04:58<00:00, 132.29batch/s]"
    for before in (bar, bar + "\r", bar + "\r" + " " * 60 + "\r"):
        _, epochs, _ = read(START + HEADER + before + ROW1)
        assert [e["test"]["srcc"] for e in epochs] == [0.9184]
        assert epochs[0]["seconds"] == {"bars": 298}


def test_of_a_redrawn_row_the_last_counts_and_windows_ends_are_fine(read):
    wrong = ROW1.rstrip().replace("0.9184", "0.1111")
    _, epochs, _ = read(START + HEADER + wrong + "\r" + ROW1)
    assert [e["test"]["srcc"] for e in epochs] == [0.9184]
    _, epochs, _ = read((START + HEADER + ROW1 + ROW2).replace("\n", "\r\n"))
    assert [e["test"]["srcc"] for e in epochs] == [0.9184, 0.9176]


def test_bars_that_were_logged_line_by_line_take_no_longer(read):
    _, (epoch,), _ = read(START + HEADER + epoch_bars(1).replace("\r", "\n") + ROW1)
    assert epoch["seconds"] == {"bars": 846}


def test_hours_in_a_bar(read):
    _, (epoch,), _ = read(START + HEADER + BAR.format("Epoch 1/2", "1:00:05") + ROW1)
    assert epoch["seconds"] == {"bars": 3605}


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in main\n    f()\n'


@pytest.mark.parametrize(
    "tail, status",
    [
        ("", "cut off"),
        (TRACEBACK + "KeyboardInterrupt\n", "interrupted"),
        (TRACEBACK + "torch.cuda.OutOfMemoryError: CUDA out of memory.\n", "crashed"),
        ("Killed\n", "crashed"),
        (TRACEBACK + "ValueError: a worker's, survived\n" + ROW2 + MEDIAN, "finished"),
    ],
)
def test_how_a_log_ends(read, tail, status):
    _, _, end = read(START + HEADER + ROW1 + tail)
    assert end["status"] == status


def test_a_run_that_crashed_before_its_first_epoch(read):
    run, epochs, end = read(START + RANKING + TRACEBACK + "RuntimeError: CUDA error\n")
    assert (epochs, end["status"], end["problem"]) == ([], "crashed", "RuntimeError: CUDA error")
    assert run["flags"]["ranking_loss_alpha"] == 0.3


def test_all_epochs_without_a_closing_line_are_a_finished_run(read):
    assert read(START + HEADER + epoch_bars(1) + ROW1)[2]["status"] == "cut off"
    assert (
        read(START + HEADER + epoch_bars(1) + ROW1 + epoch_bars(2) + ROW2)[2]["status"]
        == "finished"
    )


@pytest.mark.parametrize("length", range(len(ROW2)))
def test_a_row_cut_off_anywhere_is_no_row(read, length):
    _, epochs, _ = read(START + HEADER + ROW1 + ROW2[:length])
    # Without its line end alone it is whole.
    assert len(epochs) == (2 if length == len(ROW2) - 1 else 1)


def test_rounds_of_the_public_code(read):
    round2 = "Round 2\n" + HEADER + ROW1.replace("0.9184", "0.9001") + ROW2
    _, epochs, _ = read(START + HEADER + ROW1 + ROW2 + round2 + MEDIAN)
    assert [(e["round"], e["epoch"], e["test"]["srcc"]) for e in epochs] == [
        (1, 1, 0.9184),
        (1, 2, 0.9176),
        (2, 1, 0.9001),
        (2, 2, 0.9176),
    ]


def test_rounds_that_nothing_announces(read):
    _, epochs, end = read(START + HEADER + ROW1 + ROW2 + ROW1)
    assert [(e["round"], e["epoch"]) for e in epochs] == [(1, 1), (1, 2), (2, 1)]
    assert len(end["rounds"]) == 2


OWN = """Run: swin_nano_x
Settings: alpha_like=1e-05 dataset=koniq-10k dataset_path=/data/my sets/koniq epochs=2 lr=0.0002 pretrained=False run_name=None seed=7 training_fixes=none
Device: cpu (x86_64)
Precision: training bf16 autocast (this CPU has avx512_bf16), scoring fp32
koniq-10k: 160 train images, 60 test images
SPAQ cross test: 40 images
Epoch	Train_Loss	Train_SRCC	Train_PLCC	Test_SRCC	Test_PLCC	SPAQ_SRCC	SPAQ_PLCC
1	24.755 (L1:33.072,Rank:5.350)	0.0229	0.0292	0.0024	0.0892	0.1387	0.0249
Learning rates: HyperNet=1.00e-03, Backbone=1.01e-04
2	18.394 (L1:23.473,Rank:6.544)	0.0315	0.0362	0.0567	0.1212	-0.3252	-0.2876
"""
OWN_END = "Best SRCC: 0.0567, Best PLCC: 0.1212 (epoch 2)\nMedian test of 1 round: SRCC 0.0567, PLCC 0.1212\n"


def test_our_own_plain_log(read):
    run, epochs, end = read(OWN + OWN_END, "swin_nano_x")
    assert run["flags"]["dataset_path"] == "/data/my sets/koniq"
    assert (run["flags"]["seed"], run["flags"]["pretrained"], run["flags"]["run_name"]) == (
        7,
        False,
        None,
    )
    assert (run["device"], run["precision"]) == ("cpu (x86_64)", "bf16")
    assert run["data"] == {"train": 160, "test": 60, "spaq": 40}
    assert epochs[1]["spaq"] == {"srcc": -0.3252, "plcc": -0.2876}
    assert (end["status"], end["rounds"][0]["best_epoch"]) == ("finished", 2)


def test_our_own_logs_ends(read):
    early = "Early stopping triggered!\n" + OWN_END
    assert read(OWN + early)[2]["status"] == "early_stopped"
    assert (
        read(OWN.rsplit("2\t18", 1)[0] + "error: x.jpg: cannot be read\n")[2]["status"] == "failed"
    )
    assert read(OWN.rsplit("2\t18", 1)[0])[2]["status"] == "cut off"
    interrupted, rest = (
        OWN.rsplit("2\t18", 1)[0] + "Interrupted\n",
        "2\t18" + OWN.rsplit("2\t18", 1)[1],
    )
    assert read(interrupted)[2]["status"] == "interrupted"
    assert read(interrupted + rest + OWN_END)[2]["status"] == "finished"


def test_our_own_rounds_have_their_seeds(read):
    head, rows = OWN.split("Epoch\tTrain_Loss", 1)
    rows = "Epoch\tTrain_Loss" + rows
    _, epochs, end = read(
        head + f"Round 1 of 2, seed 7\n{rows}Round 2 of 2, seed 8\n{rows}" + OWN_END
    )
    assert [(e["round"], e["epoch"]) for e in epochs] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [r["seed"] for r in end["rounds"]] == [7, 8]


@pytest.mark.parametrize("content", [b"", b"pip install torch\n", bytes(range(256)) * 50])
def test_other_files_are_refused_by_name(read, content):
    with pytest.raises(UserError, match=r"x\.log: not a training log"):
        read(content, "x")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_log(tmp_path / "none.log")


def test_a_large_log_takes_seconds(read):
    bars = "".join(
        f"\rEpoch 1/2:  {i % 100}%|█████     | {i}/1468 [{i // 60:02d}:{i % 60:02d}<01:48,  6.80batch/s]"
        for i in range(3000)
    )
    text = (START + HEADER + bars + "\n" + ROW1) * 80
    assert len(text) > 15_000_000
    start = time.process_time()
    _, epochs, _ = read(text)
    assert time.process_time() - start < 3
    assert len(epochs) == 80
