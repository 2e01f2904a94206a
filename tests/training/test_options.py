import subprocess
import sys
from pathlib import Path

import pytest

import train_timm
from hyperiqa.base.command_line import Flags, parse_resize
from hyperiqa.base.errors import UserError, first_five
from hyperiqa.datasets.records import USUAL, Columns
from hyperiqa.model import fusion, hyper
from hyperiqa.training import flags, schedules
from hyperiqa.training.flags import Script
from hyperiqa.training.options import figure_settings, parse_fixes, train_options

DATASETS = {"koniq-10k": "384", "spaq": "384", "csv": "384", "demo": "384", "live": "none"}
DEMO = {"backbone": "tiny", "pretrained": False, "lr": 1e-3}


def parse(*argv):
    words = [str(word) for word in argv]
    return train_options(words, "doc", Script(("big", "tiny"), DATASETS, DEMO, "swin"))


def test_the_published_defaults():
    options = parse()
    expected = dict(
        dataset="koniq-10k",
        train_patch_num=25,
        test_patch_num=25,
        lr=2e-5,
        lr_ratio=10,
        weight_decay=5e-4,
        batch_size=96,
        epochs=16,
        lr_scheduler="cosine",
        patience=5,
        train_test_num=1,
        seed=42,
        patch_size=224,
        test_crop="center",
        fusion="none",
        ranking_loss_alpha=0.0,
        ranking_loss_margin=0.5,
        resize="384",
        cross_resize={"spaq": "384"},
        backbone="big",
        pretrained=True,
        early_stopping=True,
        cross_test=None,
        training_fixes=(),
        precision="auto",
        demo_defaults={},
    )
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        (["--use_multiscale"], "fusion", "concat"),
        (["--no_multiscale"], "fusion", "none"),
        (["--no_lr_scheduler"], "lr_scheduler", "none"),
        (["--test_random_crop"], "test_crop", "random"),
        (["--no_early_stopping"], "early_stopping", False),
        (["--no_pretrained"], "pretrained", False),
        (["--no_spaq"], "cross_test", {}),
        (["--dataset", "spaq"], "cross_test", {}),
        (["--spaq_path", "x"], "cross_test", {"spaq": Path("x")}),
        (["--cross_test", "live", "csv=a.csv"], "cross_test", {"live": None, "csv": Path("a.csv")}),
        (
            ["--cross_test", "live=x", "--spaq_path", "y"],
            "cross_test",
            {"live": Path("x"), "spaq": Path("y")},
        ),
        (["--cross_test", "live", "spaq"], "cross_resize", {"live": "none", "spaq": "384"}),
        (["--fusion", "concat", "--use_multiscale"], "fusion", "concat"),
        (["--lr", "1e-3", "--lr", "1e-4"], "lr", 1e-4),
        (
            ["--lr_scheduler", "step", "--training_fixes", "all"],
            "training_fixes",
            ("backbone_lr", "optimizer_state"),
        ),
        (["--resize", "512x384"], "cross_resize", {"spaq": "512x384"}),
        (["--backbone", "swinv2_tiny_window8_256"], "backbone", "swinv2_tiny_window8_256"),
        (["--dataset", "live"], "resize", "none"),
        (["--dataset", "live=x"], "dataset_path", Path("x")),
    ],
)
def test_flags_and_aliases(flags, setting, value):
    assert getattr(parse(*flags), setting) == value


def test_an_encoder_of_random_weights_is_not_frozen_by_the_demo():
    options = train_options(["--dataset", "demo", "--no_pretrained"], None, train_timm.SCRIPT)
    assert not options.freeze_backbone and options.demo_defaults["fixed_crops"]
    assert train_options(["--dataset", "demo"], None, train_timm.SCRIPT).freeze_backbone


def test_the_demo_brings_defaults_only_where_the_user_gave_none():
    options = parse("--dataset", "demo", "--lr", "2e-5")
    assert (options.lr, options.backbone, options.pretrained) == (2e-5, "tiny", False)
    assert options.demo_defaults == {"backbone": "tiny", "pretrained": False}
    assert parse("--lr_ratio", 3).demo_defaults == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate", "1"], r"unknown flag --learning_rate 1$"),
        (["--epoch", "3"], r"unknown flag --epoch 3 \(did you mean --epochs\?\)$"),
        (["--epochs", "0"], "--epochs 0: expected a whole number of at least 1"),
        (["--epochs", "two"], "--epochs two: expected a whole number of at least 1$"),
        (["--batch_size", "-4"], "--batch_size -4: expected a whole number of at least 1"),
        (["--patch_size", "0"], "--patch_size 0: expected a whole number of at least 32"),
        (
            ["--ranking_loss_alpha", "1.5"],
            "--ranking_loss_alpha 1.5: expected a number from 0 to 1",
        ),
        (
            ["--ranking_loss_alpha", "nan"],
            "--ranking_loss_alpha nan: expected a number from 0 to 1",
        ),
        (["--lr", "0"], "--lr 0.0: expected a number above 0"),
        (["--lr", "inf"], "--lr inf: expected a number above 0"),
        (["--seed", "-1"], "--seed -1"),
        (
            ["--dataset", "koniq"],
            "--dataset koniq: expected NAME or NAME=PATH, NAME one of koniq-10k, spaq, csv, demo, live",
        ),
        (
            ["--dataset", "spaq=a", "--dataset_path", "b"],
            "--dataset_path is for a single set without a path of its own",
        ),
        (
            ["--backbone", "vgg16"],
            "--backbone vgg16: expected one of big, tiny, or another timm model with a name that begins with swin",
        ),
        (["--resize", "0"], "--resize 0: expected S"),
        (["--resize", "384x"], "--resize 384x: expected S"),
        (["--training_fixes", "all"], "--training_fixes needs --lr_scheduler step"),
        (
            ["--lr_scheduler", "step", "--training_fixes", "head"],
            "--training_fixes head: expected all, none or",
        ),
        (
            ["--use_multiscale", "--no_multiscale"],
            "contradictory flags: --use_multiscale and --no_multiscale",
        ),
        (
            ["--fusion", "none", "--use_multiscale"],
            "contradictory flags: --fusion and --use_multiscale",
        ),
        (["--lr_scheduler", "cosine", "--no_lr_scheduler"], "contradictory flags"),
        (["--test_crop", "grid", "--test_random_crop"], "contradictory flags"),
        (["--no_spaq", "--spaq_path", "x"], "contradictory flags: --no_spaq and --spaq_path"),
        (["--augment_strength", "0.5"], "--augment_strength needs --augment color or blur"),
        (
            ["--freeze_backbone", "--fixed_crops", "--fusion", "fpn"],
            "stores averaged features, but --fusion fpn looks at whole",
        ),
        (
            ["--freeze_backbone", "--fixed_crops", "--augment", "blur"],
            "but --augment blur is for new patches in each epoch",
        ),
        (
            ["--freeze_backbone", "--fixed_crops", "--mixup", "1"],
            "but --mixup and --cutmix change the pixels: add --feature_dtype none",
        ),
        (
            ["--freeze_backbone", "--fixed_crops", "--teacher", "README.md"],
            "but --teacher scores the patches",
        ),
        (
            ["--freeze_backbone", "--drop_path", ".1"],
            "contradictory flags: --drop_path and --freeze_backbone",
        ),
        (
            ["--freeze_backbone", "--grad_checkpointing"],
            "contradictory flags: --grad_checkpointing and --freeze_backbone",
        ),
        (
            ["--accumulate", "9", "--batch_size", "8"],
            "--accumulate 9: expected at most --batch_size 8",
        ),
        (
            ["--accumulate", "2", "--compile"],
            "contradictory flags: --compile goes with neither --grad_checkpointing nor --accumulate",
        ),
        (
            ["--freeze_backbone", "--contrastive_weight", "1"],
            "contradictory flags: --contrastive_weight trains the encoder",
        ),
        (["--dropout", "1"], "--dropout 1.0: expected a number from 0 to below 1"),
        (["--ema", "1"], "--ema 1.0: expected a number from 0 to below 1"),
        (["--milestones", "3"], "--milestones needs --lr_scheduler multistep"),
        (
            ["--lr_scheduler", "multistep", "--milestones", "5", "3"],
            "--milestones 5,3: expected rising numbers from 1 to 15",
        ),
        (
            ["--lr_scheduler", "multistep", "--milestones", "16"],
            "--milestones 16: expected rising numbers from 1 to 15",
        ),
        (["--plateau_patience", "1"], "--plateau_patience needs --lr_scheduler plateau"),
        (["--warmup_epochs", "16"], "--warmup_epochs 16: expected fewer than --epochs 16"),
        (
            ["--warmup_epochs", "2", "--lr_scheduler", "step"],
            "contradictory flags: --warmup_epochs and --lr_scheduler step",
        ),
        (["--distill_weight", "2"], "--distill_weight needs --teacher"),
        (["--fidelity_sigma", "votes"], "--fidelity_sigma needs --loss fidelity"),
        (["--loss", "srcc", "--fidelity_sigma", "batch"], "--fidelity_sigma needs --loss fidelity"),
        (
            "--loss fidelity --fidelity_sigma votes --cutmix 1".split(),
            "contradictory flags: --fidelity_sigma votes takes the votes of single images",
        ),
        (["--teacher", "nowhere.pkl"], "--teacher nowhere.pkl: no such file or folder"),
        (
            ["--augment", "none", "hflip"],
            "contradictory flags: --augment none goes with no other augmentation",
        ),
        (
            ["--cross_test", "liv"],
            "--cross_test liv: expected NAME or NAME=PATH, NAME one of koniq-10k, spaq",
        ),
        (
            ["--cross_test", "spaq", "--no_spaq"],
            "contradictory flags: --cross_test spaq and --no_spaq",
        ),
        (
            ["--cross_test", "spaq=a", "--spaq_path", "b"],
            "contradictory flags: --cross_test spaq and --spaq_path",
        ),
        (["--cross_test", "live", "live=x"], "--cross_test: live is listed twice"),
        (["--cross_test", "csv"], "--cross_test csv: expected csv=FILE.csv"),
        (
            ["--cross_test", "koniq-10k"],
            "--cross_test koniq-10k: the run tests on it anyway",
        ),
        (
            ["--no_pretrained", "--backbone_weights", "x"],
            "contradictory flags: --no_pretrained and --backbone_weights",
        ),
        (
            ["--no_early_stopping", "--patience", "3"],
            "contradictory flags: --no_early_stopping and --patience",
        ),
        (["--backbone_weights", "nowhere.pth"], "--backbone_weights nowhere.pth: no such file"),
        (["--init", "nowhere"], "--init nowhere: no such file or folder"),
        (["--init", ".", "--no_pretrained"], "contradictory flags: --init brings its own weights"),
        (
            ["--init", ".", "--backbone_weights", "."],
            "contradictory flags: --init brings its own weights",
        ),
        (["--frozen_until", "16"], "--frozen_until 16: expected fewer than --epochs 16"),
        (["--layer_decay", "1"], "--layer_decay 1.0: expected a number between 0 and 1"),
        (["--lora_targets", "fc1"], "--lora_targets needs --lora"),
        (["--lora_alpha", "4"], "--lora_alpha needs --lora"),
        (["--lora", "4", "--freeze_backbone"], "contradictory flags: --lora trains adapters"),
        (["--lora", "4", "--lr_scheduler", "step"], "contradictory flags: --lora and --lr_sched"),
        (
            ["--layer_decay", "0.7", "--lora", "4"],
            "contradictory flags: --layer_decay and --lora: the encoder's own weights do not train",
        ),
        (
            ["--frozen_until", "2", "--lr_scheduler", "step"],
            "contradictory flags: --frozen_until and --lr_scheduler step, the published procedure",
        ),
        (["--feature_dtype", "fp32"], "--feature_dtype needs --freeze_backbone and --fixed_crops"),
        (
            ["--feature_dtype", "fp32", "--fixed_crops"],
            "--feature_dtype needs --freeze_backbone and --fixed_crops",
        ),
        (
            ["--backbone", "convnext_tiny"],
            "--backbone convnext_tiny: expected one of big, tiny, or another timm model",
        ),
        (["--lower_is_better"], "--lower_is_better is for --dataset csv"),
        (
            ["--image_column", "file"],
            "--image_column is for --dataset csv: how the other sets are read is known",
        ),
        (["--dataset", "live", "--image_root", "."], "--image_root is for --dataset csv"),
        (["--dataset", "csv"], "--dataset csv needs --dataset_path FILE.csv"),
        (
            ["--dataset", "spaq", "--spaq_path", "x"],
            "--dataset spaq takes its folder from --dataset_path",
        ),
        (["--device", "gpu"], "--device gpu: expected auto, cpu, cuda, cuda:N or mps"),
        (["--run_name", "a/b"], "--run_name a/b: expected letters, digits"),
        (
            ["--ranking_loss_margin", "1"],
            "--ranking_loss_margin needs --ranking_loss_alpha above 0",
        ),
        (
            ["--epochs", "0", "--lr", "-1", "--training_fixes", "all"],
            "--epochs 0.*; --lr -1.0.*; --training_fixes needs",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_expected_and_found(flags, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(*flags)
    assert "\n" not in str(raised.value)


def test_help_shows_every_flag_grouped_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for group in ("data:", "model:", "patches:", "optimisation:", "loss:", "output:", "hardware:"):
        assert group in text
    for default in (
        "(default: 25)",
        "(default: 2e-5)",
        "(default: cosine)",
        "(default: 96)",
        "(default: 42)",
    ):
        assert default in text


def test_init_leaves_to_the_checkpoint_what_no_flag_says():
    options = parse("--init", ".", "--dataset", "demo", "--patch_size", 64)
    assert (options.backbone, options.fusion, options.patch_size) == (None, None, 64)
    assert options.demo_defaults == {"pretrained": False, "lr": 1e-3}


def test_a_script_may_take_any_backbone():
    script = Script(("big",), DATASETS, DEMO, "")
    assert train_options(["--backbone", "vit.tag"], "doc", script).backbone == "vit.tag"
    assert train_options([], "doc", script).backbone == "big"


def test_parsers_of_values():
    assert [parse_resize(t) for t in ("384", "512x384", "none")] == [384, (512, 384), None]
    assert (
        parse_fixes("backbone_lr,filter") == ("filter", "backbone_lr") and parse_fixes("none") == ()
    )
    assert first_five(range(7)) == "0, 1, 2, 3, 4, …" and first_five("ab") == "a, b"


@pytest.mark.parametrize("script", ["train_swin.py", "train_resnet.py", "train_timm.py"])
def test_a_mistake_ends_the_script_with_one_line_before_torch_is_imported(script):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{script}', '--epochs', '0']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print(sorted({'torch', 'timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --epochs 0: expected a whole number of at least 1\n",
    )
    assert done.stdout == "[]\n"


def test_parser_says_errors_as_user_errors():
    with pytest.raises(UserError, match="unknown flag --x"):
        Flags("doc").parse(["--x"])


def test_choices_are_those_of_the_axes():
    """flags.py lists them, since it must not import torch; the dictionaries of the axes are the truth."""
    assert tuple(fusion.FUSIONS) == flags.FUSIONS and tuple(schedules.SCHEDULES) == flags.SCHEDULES
    assert tuple(hyper.HYPERS) == flags.HYPERS


def test_the_columns_of_a_csv_are_settings_of_the_run_but_not_where_its_images_lie():
    named = [
        *"--image_column file --score_column q --split_column part".split(),
        *"--group_column scene".split(),
    ]
    csv = ["--dataset", "csv", "--dataset_path", "a.csv"]
    there, here = parse(*csv, *named, "--image_root", "x"), parse(*csv, *named)
    assert Columns.of(there) == Columns("file", "q", "part", "scene", Path("x"))
    assert figure_settings(there) == figure_settings(here)
    changed = {n for n, v in figure_settings(here).items() if v != figure_settings(parse(*csv))[n]}
    assert changed == {"image_column", "score_column", "split_column", "group_column"}
    assert Columns.of(parse()) == USUAL


def test_settings_of_an_older_version_mean_what_they_did():
    """A run of 0.7 knew SPAQ alone as a cross test, and of later flags nothing: those count as their defaults."""
    now = figure_settings(
        parse("--seed", 7, "--lr_scheduler", "step", "--training_fixes", "filter")
    )
    older = {**vars(parse("--seed", 7, "--lr_scheduler", "step", "--training_fixes", "filter"))}
    del older["cross_test"], older["cross_resize"], older["compile"]
    older |= {"spaq": True, "spaq_path": None, "spaq_resize": "384", "training_fixes": ["filter"]}
    assert figure_settings(older) == now
    assert figure_settings({**older, "spaq": False}) == {**now, "cross_resize": {}}
    assert figure_settings({**older, "lr": 1.0}) == {**now, "lr": 1.0}


def test_every_mistake_in_the_flags_is_named_at_once():
    with pytest.raises(UserError) as raised:
        parse(*"--datset demo --loss l3 --epochs two --seed -1 --training_fixes all --lr".split())
    assert str(raised.value).split("; ") == [
        "--loss l3: expected one of l1, mse, smooth_l1, plcc, srcc, fidelity",
        "--epochs two: expected a whole number of at least 1",
        "--lr: expected a number above 0",
        "unknown flag --datset demo (did you mean --dataset?)",
        "--seed -1: expected a whole number of at least 0",
        "--training_fixes needs --lr_scheduler step: it repairs that schedule and no other",
    ]


@pytest.mark.parametrize(
    ("words", "yielding"),
    [
        ("--epochs 1", {"warmup_epochs": 0}),
        ("--lr_scheduler step", {"warmup_epochs": 0}),
        ("--warmup_epochs 12", {"epochs": 16}),
        ("--epochs 3", {}),
    ],
)
def test_the_demos_defaults_yield_to_what_the_user_says(words, yielding):
    demo = {"warmup_epochs": 1, "epochs": 10, "fusion": "direct"}
    script = Script(("big",), DATASETS, demo)
    options = train_options(["--dataset", "demo", *words.split()], "doc", script)
    flag, value = words.removeprefix("--").split()
    expected = {**demo, **yielding}
    assert {n: getattr(options, n) for n in demo if n != flag} == {
        n: v for n, v in expected.items() if n != flag
    }
    assert str(getattr(options, flag)) == value
    assert set(options.demo_defaults) == set(demo) - set(yielding) - {flag}


def test_the_beginning_of_a_backbones_name_suffices_where_one_begins_so():
    script = Script(
        ("swin_tiny_patch4_window7_224", "swin_nano", "swin_pico"), DATASETS, {}, "swin"
    )
    assert (
        train_options(["--backbone", "swin_tiny"], "doc", script).backbone
        == "swin_tiny_patch4_window7_224"
    )
    assert train_options(["--backbone", "swin_pico"], "doc", script).backbone == "swin_pico"
    assert (
        train_options(["--backbone", "swin_s3_tiny_224"], "doc", script).backbone
        == "swin_s3_tiny_224"
    )
    with pytest.raises(
        UserError,
        match="--backbone swin_: expected one of swin_tiny_patch4_window7_224, swin_nano, swin_pico$",
    ):
        train_options(["--backbone", "swin_"], "doc", script)
