import argparse
import base64
import csv
import json
import math
import os
import shutil
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, save_teacher, write_images, write_koniq, write_spaq
from PIL import Image

import certify
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints
from hyperiqa.scoring import certificate_checks, quality_model, retraining
from hyperiqa.scoring.verdicts import compare_figure
from hyperiqa.training import certificate
from hyperiqa.training.run_files import write_predictions
from HyperIQASolver import HyperIQASolver


@pytest.fixture(scope="module")
def trained(launcher, tmp_path_factory):
    """A run of its own data, with a teacher: (folder, checkpoint)."""
    folder = tmp_path_factory.mktemp("certified")
    write_koniq(folder / "koniq", train=12, test=24)
    write_spaq(folder / "spaq", number=24)
    teacher = save_teacher(folder / "teacher.pkl")
    flags = [
        "--dataset_path",
        folder / "koniq",
        "--spaq_path",
        folder / "spaq",
        "--log_dir",
        folder / "logs",
        "--checkpoint_dir",
        folder / "checkpoints",
        "--cache_dir",
        folder / "cache",
        *"--run_name run --backbone resnet18 --no_pretrained --patch_size 64".split(),
        *"--resize 72 --train_patch_num 2 --batch_size 8 --epochs 2 --lr 1e-3".split(),
        *"--precision fp32".split(),
        "--teacher",
        teacher,
    ]
    environment = {"TQDM_DISABLE": "1", "HOME": str(folder)}
    done = launcher.tool("train_resnet.py", *flags, environment=environment)
    assert done.returncode == 0, done.stderr
    return folder, checkpoints.find_model(folder / "checkpoints" / "run")


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """The same in a place of the test's own, where files may be changed."""
    folder, model = trained
    for name in ("koniq", "spaq", "logs"):
        shutil.copytree(folder / name, tmp_path / name)
    shutil.copy2(folder / "teacher.pkl", tmp_path / "teacher.pkl")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path, Path(shutil.copy2(model, tmp_path / "model.pkl"))


def verdicts(text):
    found = {}
    for line in text.splitlines():
        for verdict in ("reproduced", "differs", "cannot be checked"):
            what, between, how = line.partition(f"  {verdict}")
            if between:
                found[what.strip().split(" 0.")[0].split(" -0.")[0]] = (
                    verdict,
                    how.removeprefix(": "),
                )
    return found


def checked(run_main, folder, model, code, *flags, sets=True):
    where = ["--dataset_path", folder / "koniq", "--spaq_path", folder / "spaq"] if sets else []
    more = ["--log_dir", folder / "logs", "--no_cache"]
    return verdicts(
        run_main("certify.py", certify.main, model, *where, *more, *flags, code=code).stdout
    )


def edited(model, change):
    """Save the model with its description or its weights changed."""
    state = checkpoints.load(model)
    change(state, checkpoints.description_of(state))
    checkpoints.save(model, state)


def test_an_untouched_model_is_reproduced(run_main, copy):
    folder, model = copy
    found = checked(run_main, folder, model, 0)
    items = (
        "seal weights predictions|koniq-10k records and split|koniq-10k pixels|test SRCC|test PLCC"
    )
    items = items.replace("seal weights predictions", "seal|weights|predictions").split("|")
    items += ["spaq records and split", "spaq pixels", "spaq SRCC", "spaq PLCC"]
    items += ["settings", "description", "scores"]
    items += ["calibration", "koniq-10k calibration", "spaq calibration"]
    items += [
        f"{name} {fact}"
        for name in ("koniq-10k", "spaq")
        for fact in ("hashes", "numbers of images")
    ]
    assert {*items} <= {*found} and len(found) == len(items) + 1  # and the teacher
    assert {verdict for verdict, _ in found.values()} == {"reproduced"}
    assert found["test SRCC"][1] in (
        "exactly",
        *(f"to {n}e-{k:02}" for n in range(1, 10) for k in range(5, 17)),
    )


def change_image(folder, model):
    path = folder / "koniq/test/test_3.jpg"
    pixels = np.array(Image.open(path))
    pixels[:20] = 255 - pixels[:20]
    Image.fromarray(pixels).save(path, quality=95)


def change_training_image(folder, model):
    write_images(folder / "koniq/train", ["train_0.jpg"], seed=77)


def change_mos(folder, model):
    path = folder / "koniq/koniq10k_scores_and_distributions.csv"
    rows = list(csv.reader(path.open()))
    rows[-1][-1] = str(float(rows[-1][-1]) + 1)
    csv.writer(path.open("w", newline="")).writerows(rows)


def change_split(folder, model):
    lists = {
        part: json.loads((folder / f"koniq/koniq_{part}.json").read_text())
        for part in ("train", "test")
    }
    lists["train"][0], lists["test"][0] = lists["test"][0], lists["train"][0]
    for part, entries in lists.items():
        (folder / f"koniq/koniq_{part}.json").write_text(json.dumps(entries))
    for part, name in (("test", "train_0.jpg"), ("train", "test_0.jpg")):
        shutil.copy(folder / f"koniq/{name.split('_')[0]}/{name}", folder / f"koniq/{part}/{name}")


def swap_weights(folder, model):
    def change(state, d):
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.randn(
                    tensor.shape, generator=torch.Generator().manual_seed(1)
                )

    edited(model, change)


def change_one_weight(folder, model):
    edited(model, lambda state, d: state["fc5b_fc.bias"].add_(1e-3))


def edit_figure(folder, model):
    edited(model, lambda state, d: d["certificate"]["figures"]["test"]["srcc"].__setitem__(0, 0.95))


def edit_figure_and_seal(folder, model):
    def change(state, d):
        d["certificate"]["figures"]["spaq"]["plcc"][1] -= 0.01
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change)


def edit_seed(folder, model):
    edited(model, lambda state, d: d.update(seed=7))


def edit_commit(folder, model):
    edited(model, lambda state, d: d["certificate"]["code"].update(commit="f" * 40))


def edit_resize(folder, model):
    def change(state, d):
        d["resize"] = "80"
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change)


def change_predictions(folder, model):
    path = folder / "logs/run_predictions.csv"
    path.write_text(path.read_text().replace("test_3.jpg", "test_33.jpg"))


def change_teacher(folder, model):
    def change(state, d):
        teacher = d["certificate"]["starts"]["teacher"]
        teacher["file"], teacher["weights"] = str(folder / "teacher.pkl"), "0" * 16
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change)


def narrow(d, name):
    spread = d["calibration"][name]["spread"]
    d["calibration"][name]["spread"] = [value / 2 for value in spread]


def edit_calibration(folder, model):
    edited(model, lambda state, d: narrow(d, "koniq-10k"))


def edit_calibration_and_its_digest(folder, model):
    def change(state, d):
        narrow(d, "spaq")
        d["certificate"]["calibration"] = certificate.json_digest(d["calibration"])

    edited(model, change)


def edit_calibration_and_seal(folder, model):
    def change(state, d):
        narrow(d, "spaq")
        d["certificate"]["calibration"] = certificate.json_digest(d["calibration"])
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change)


def deny_that_the_images_chose(folder, model):
    def change(state, d):
        d["calibration"]["koniq-10k"].update(which="test images", chose_epoch=False)
        d["certificate"]["calibration"] = certificate.json_digest(d["calibration"])
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change)


def remove_calibration(folder, model):
    edited(model, lambda state, d: d.pop("calibration"))


TAMPERINGS = {
    edit_calibration: {"calibration", "koniq-10k calibration"},
    edit_calibration_and_its_digest: {"seal", "spaq calibration"},
    edit_calibration_and_seal: {"spaq calibration"},
    deny_that_the_images_chose: {"koniq-10k calibration"},
    remove_calibration: {"calibration"},
    change_image: {"koniq-10k pixels", "test PLCC"},
    change_training_image: {"koniq-10k pixels"},
    change_mos: {"koniq-10k records and split"},
    change_split: {"koniq-10k records and split"},
    swap_weights: {"weights", "test PLCC", "spaq PLCC"},
    change_one_weight: {"weights"},
    edit_figure: {"seal", "test SRCC"},
    edit_figure_and_seal: {"spaq PLCC"},
    edit_seed: {"seal", "settings.seed"},
    edit_commit: {"seal"},
    edit_resize: {"test PLCC"},
    change_predictions: {"predictions"},
    change_teacher: {"--teacher"},
}


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_what_was_changed_is_found(run_main, copy, tamper):
    folder, model = copy
    tamper(folder, model)
    found = checked(run_main, folder, model, 1)
    differing = {what for what, (verdict, _) in found.items() if verdict == "differs"}
    wanted = TAMPERINGS[tamper]
    assert all(any(what.startswith(each) for what in differing) for each in wanted), (
        differing,
        wanted,
    )
    untouched = {"seal", "weights", "predictions"} - {each for each in wanted if "-" not in each}
    assert not differing & untouched


def test_what_is_not_there_cannot_be_checked(run_main, copy):
    folder, model = copy
    shutil.rmtree(folder / "spaq")
    found = checked(run_main, folder, model, 3)
    assert found["spaq records, pixels and figures"][0] == "cannot be checked"
    assert found["test SRCC"][0] == "reproduced"
    shutil.move(folder / "koniq", folder / "gone")
    write_spaq(folder / "spaq", number=24)
    found = checked(run_main, folder, model, 3)
    assert found["spaq SRCC"][0] == "reproduced"
    verdict, reason = found["koniq-10k records, pixels and figures"]
    assert verdict == "cannot be checked" and "no folder" in reason


def test_a_set_is_looked_for_where_it_was_in_training(run_main, copy):
    folder, model = copy
    assert "differs" not in {
        verdict for verdict, _ in checked(run_main, folder, model, 0, sets=False).values()
    }


def test_a_model_without_a_certificate_and_wrong_flags(run_main, copy, tmp_path):
    folder, model = copy
    d = {**checkpoints.load_model(model)[1]}
    del d["certificate"]
    net = quality_model.load(model).net
    checkpoints.save(tmp_path / "bare.pkl", checkpoints.portable_state(net, d))
    said = run_main("certify.py", certify.main, tmp_path / "bare.pkl", code=2).stderr
    assert "carries no certificate" in said and len(said.splitlines()) == 1
    edited(model, lambda state, d: d["certificate"].pop("hardware"))
    said = run_main("certify.py", certify.main, model, code=2).stderr
    assert "certificate.hardware: missing" in said and len(said.splitlines()) == 1
    edited(
        model,
        lambda state, d: d["certificate"].update(
            hardware={"device": "cpu", "precision": "fp32", "threads": 1, "processes": 1}
        ),
    )
    said = run_main(
        "certify.py", certify.main, model, "--cross_test", f"tid2013={folder}", code=2
    ).stderr
    assert "the model names the sets koniq-10k, spaq" in said
    assert (
        "expected NAME=PATH"
        in run_main("certify.py", certify.main, model, "--cross_test", "x", code=2).stderr
    )


def test_exported_models_keep_their_certificate(run_main, copy, tmp_path):
    folder, model = copy
    state, d = checkpoints.load_model(model)
    checkpoints.save_safetensors(tmp_path / "model.safetensors", state, d)
    assert checked(run_main, folder, tmp_path / "model.safetensors", 0)["seal"] == (
        "reproduced",
        "",
    )


def test_training_anew_gives_the_same_weights(run_main, copy):
    folder, model = copy

    def taken_up(state, d):  # as if the run had been stopped once
        d["certificate"]["command"] += ["--resume", str(folder / "last.pt")]
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, taken_up)
    found = checked(run_main, folder, model, 0, "--repeat")
    assert found["trained anew: weights"] == ("reproduced", "")
    assert found["trained anew: spaq SRCC"] == ("reproduced", "exactly")


def sealed_again(model, change):
    """Save the model with its description changed, and the seal of that."""

    def change_and_seal(state, d):
        change(d, d["certificate"])
        d["certificate"]["seal"] = certificate.seal_of(d)

    edited(model, change_and_seal)


FORGERIES = {
    "settings.lr": lambda d, c: d.update(lr=5e-4),
    "settings.train_patch_num": lambda d, c: c["command"].extend(["--train_patch_num", "9"]),
    "settings.rule.select_on": lambda d, c: c["rule"].update(select_on="val"),
    "settings.rule.patience": lambda d, c: c["rule"].update(patience=2),
    "settings.first seed": lambda d, c: c.update(seed=7),
    "settings.seed": lambda d, c: c.update(round=2),
    "settings.starts": lambda d, c: c.update(starts={}),
    "settings.teacher_digest": lambda d, c: d.update(teacher_digest=None),
    "settings.sets": lambda d, c: c["sets"].pop("spaq"),
    "settings.cross_resize.spaq": lambda d, c: d.update(cross_resize={}),
    "settings.select_set": lambda d, c: d.update(select_set="other"),
    "description.metrics.test.srcc": lambda d, c: d["metrics"]["test"].update(srcc=0.95),
    "description.metrics.other": lambda d, c: d["metrics"].update(other={"srcc": 0.95}),
    "description.versions.torch": lambda d, c: d["versions"].update(torch="1.0"),
    "figures.spaq": lambda d, c: c["figures"].pop("spaq"),
    "figures.other": lambda d, c: c["figures"].update(other=c["figures"]["test"]),
}


@pytest.mark.parametrize("item", FORGERIES)
def test_what_the_description_says_twice_agrees(trained, item):
    _, description = checkpoints.load_model(trained[1])
    options = argparse.Namespace(repeat=False, log_dir=None, image_root=None)

    def differing():
        _, checks = certify.train_again(description, options)
        checks = [*checks, *certificate_checks.check_headline(description)]
        return {check.item for check in checks if check.verdict != "reproduced"}

    assert not differing()
    description = deepcopy(description)
    FORGERIES[item](description, description["certificate"])
    assert item in differing()


def test_the_pool_that_the_encoder_decides_is_no_difference(trained):
    _, description = checkpoints.load_model(trained[1])
    description = deepcopy(description) | {"head": "mlp", "pool": "mean"}
    certified = description["certificate"]
    certified["command"] = [*certified["command"], "--head", "mlp"]
    options = argparse.Namespace(repeat=False, log_dir=None, image_root=None)
    _, checks = certify.train_again(description, options)
    verdicts = {check.item: check.verdict for check in checks}
    assert "settings.pool" not in verdicts and "differs" not in verdicts.values()


def test_what_the_description_says_of_the_sets_is_computed_again(run_main, copy):
    folder, model = copy

    def forge(d, c):
        d.update(score_range=[0.0, 5.0], nominal_range=[0, 5], higher_is_better=False)
        c["figures"]["test"]["srcc"] = [0.9, 0.8, 0.95]
        c["sets"]["spaq"]["images"] = {"test": 2224}
        c["sets"]["koniq-10k"]["looks"] = certificate.pack_hashes([["a", "0" * 16]] * 12)

    sealed_again(model, forge)
    found = checked(run_main, folder, model, 1)
    lies = "scores.score_range|scores.nominal_range|scores.higher_is_better|test SRCC"
    lies += "|spaq numbers of images|koniq-10k hashes"
    assert {*lies.split("|")} <= {
        item for item, (verdict, _) in found.items() if verdict == "differs"
    }


def test_only_the_words_of_a_train_script_are_repeated(run_main, copy):
    folder, model = copy
    script = folder / "evil.py"
    script.write_text(f"open({str(folder / 'ran')!r}, 'w')")

    def found_with(*command):
        sealed_again(model, lambda d, c: c.update(command=[*command]))
        done = run_main("certify.py", certify.main, model, "--repeat", code=2)
        assert len(done.stderr.splitlines()) == 1 and not done.stdout
        return done.stderr

    assert "expected one of train_swin.py, train_resnet.py, train_timm.py" in found_with(
        str(script)
    )
    assert "expected one of" in found_with("certify.py")
    assert "asks for help" in found_with("train_swin.py", "-hh")
    assert "asks for help" in found_with("train_swin.py", "--version")
    assert "unknown flag --evil" in found_with("train_swin.py", "--evil")
    assert "--lr x: expected a number above 0" in found_with("train_swin.py", "--lr", "x")
    smuggled = "--lower_is_better=--launcher=local"
    assert "looks like a flag" in found_with("train_swin.py", smuggled)
    assert not (folder / "ran").exists()


def test_no_pipe_and_no_device_is_opened(run_main, copy):
    folder, model = copy
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "logs/pipe_predictions.csv")

    def forge(d, c):
        d["run"] = "pipe"
        c["starts"]["teacher"]["file"] = str(folder / "pipe")
        c["sets"]["koniq-10k"]["path"] = str(folder / "pipe")
        c["starts"]["init"] = {"file": "/dev/zero", "weights": "0" * 16, "starts": {}}
        c["starts"]["backbone_weights"] = {"file": "a\0b", "weights": "0" * 16, "starts": {}}

    sealed_again(model, forge)
    found = checked(run_main, folder, model, 1, sets=False)
    unread = {
        item.split()[0] for item, (verdict, _) in found.items() if verdict == "cannot be checked"
    }
    assert unread == {"predictions", "--teacher", "--init", "--backbone_weights", "koniq-10k"}


def test_places_are_those_of_the_training(run_main, copy):
    folder, model = copy
    found = verdicts(run_main("certify.py", certify.main, model, "--no_cache").stdout)
    assert found["predictions"][0] == found["spaq SRCC"][0] == "reproduced"


RETRAINED_LIES = {
    "description.certificate.epoch": lambda d, c: c.update(epoch=9),
    "description.certificate.resamples": lambda d, c: c.update(resamples=9),
    "description.certificate.predictions": lambda d, c: c.update(predictions="0" * 16),
    "description.certificate.seed": lambda d, c: c.update(seed=9),
    "description.certificate.rule.patience": lambda d, c: c["rule"].update(patience=9),
    "description.certificate.starts.teacher.starts.init": lambda d, c: c["starts"]["teacher"][
        "starts"
    ].update(init={"file": "x", "weights": "0" * 16, "starts": {}}),
    "description.lr": lambda d, c: d.update(lr=1.0),
    "description.seed": lambda d, c: d.update(seed=9),
    "description.other": lambda d, c: d.update(other=1),
    "test SRCC": lambda d, c: c["figures"]["test"].update(srcc=[0.9, 0.8, 0.95]),
    "origin.code.commit": lambda d, c: c["code"].update(commit="f" * 40),
    "origin.hardware.device": lambda d, c: c["hardware"].update(device="another"),
    "origin.notes.koniq-10k": lambda d, c: c["sets"]["koniq-10k"].update(notes=["another"]),
}


@pytest.mark.parametrize("item", RETRAINED_LIES)
def test_training_anew_finds_every_field_that_differs(trained, item):
    _, description = checkpoints.load_model(trained[1])
    forged = deepcopy(description)
    RETRAINED_LIES[item](forged, forged["certificate"])
    checks = retraining.compare_descriptions(forged, description)
    verdict = "cannot be checked" if item.startswith("origin") else "differs"
    (check,) = [check for check in checks if check.verdict != "reproduced"]
    assert check.item.startswith(f"trained anew: {item}") and check.verdict == verdict


def test_what_is_undefined_in_both_is_the_same():
    undefined = [None, math.nan, 0.5], [math.nan, None, 0.5]
    assert compare_figure("x", *undefined).verdict == "reproduced"
    for figure in ([None, 0.1, 0.5], [0.2, 0.1], [0.2, 0.1, None]):
        check = compare_figure("x", figure, [0.2, 0.1, 0.5])
        assert check.verdict == "differs"


def test_near_duplicates_are_named_in_training_testing_and_on_a_sheet(settings, run_main, tmp_path):
    koniq, spaq = write_koniq(tmp_path / "koniq", test=10), write_spaq(tmp_path / "spaq", 10)
    for seed, path in enumerate([*sorted(koniq.glob("t*/*.jpg")), *sorted(spaq.glob("*.jpg"))]):
        Image.fromarray(picture(seed=seed)).save(path)
    with Image.open(koniq / "train/train_2.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(koniq / "test/test_5.jpg", quality=70)
        image.resize((120, 90)).save(spaq / "spaq_1.jpg", quality=80)
    solver = HyperIQASolver(
        settings("resnet", "--dataset_path", koniq, "--spaq_path", spaq, "--epochs", 1)
    )
    solver.run()
    log = solver.log.path(".log").read_text()
    assert (
        "koniq-10k test_5.jpg ~ koniq-10k train_2.jpg" in log
        and "spaq spaq_1.jpg ~ koniq-10k train_2.jpg" in log
    )
    import evaluate

    flags = ["--datasets", f"spaq={spaq}", "--no_cache", "--resamples", 100]
    out = run_main("evaluate.py", evaluate.main, solver.folder, *flags).stdout
    assert "like training images: spaq_1.jpg ~ koniq-10k train_2.jpg" in out
    where = [
        "--dataset_path",
        koniq,
        "--spaq_path",
        spaq,
        "--log_dir",
        tmp_path / "logs",
        "--no_cache",
    ]
    out = run_main(
        "certify.py",
        certify.main,
        solver.folder,
        *where,
        "--sheet",
        tmp_path / "twins.html",
        code=3,
    ).stdout
    assert "Near duplicates" in out
    page = (tmp_path / "twins.html").read_text()
    assert page.count("koniq-10k test_5.jpg") and page.count("spaq spaq_1.jpg")


def test_predictions_of_a_file_have_the_digest_of_the_run(tmp_path):
    rows = [("set", "a.jpg", 50.1, 1 / 3), ("set", "b.jpg", 2.0, float(np.float32(0.1)))]
    write_predictions(tmp_path / "p.csv", rows)
    from hyperiqa.training.run_files import read_predictions

    assert certificate.predictions_digest(
        read_predictions(tmp_path / "p.csv")
    ) == certificate.predictions_digest(rows)


def packed(content):
    return base64.b85encode(zlib.compress(content)).decode()


def hashes_of(looks, images):
    facts = {"looks": looks, "trained": True, "images": {"train": images, "test": 3}}
    return certificate.unpack_hashes("name", facts)


def test_names_and_hashes_are_packed_whole():
    rows = [['ä \\ " b], [.jpg', "0123456789abcdef"], ["c", ""]]
    assert hashes_of(certificate.pack_hashes(rows), 2) == rows
    many = [[f"folder/image_{i}.jpg", f"{i:016x}"] for i in range(20_000)]
    assert hashes_of(certificate.pack_hashes(many), 20_000) == many


@pytest.mark.parametrize(
    ("looks", "images"),
    [
        ("", 2),
        ("!!", 2),
        (packed(b"x"), 2),
        (packed(b"[]"), 2),
        (packed(b"["), 0),
        (packed(b'[["a", "0"], ["b", "1"]]'), 2),
        (packed(b'[["a", "0123456789abcdef"], 5]'), 2),
        (packed(b'[["a", "0123456789abcdef"]]'), 2),
        (packed(b'{"a": "0123456789abcdef"}'), 1),
        # What would take gigabytes, or seconds, once it is unpacked.
        (packed(b"[" + b" " * 2**28 + b"]"), 0),
        (packed(b"[" + b"[], " * 2**22 + b"[]]"), 2**22 + 1),
        (packed(b"[" * 10**6), 2),
        (packed(b'[["' + b"a" * 2**24), 1),
    ],
)
def test_damaged_hashes_are_one_line(looks, images):
    with pytest.raises(UserError, match="sets.name.looks: expected the packed names and hashes"):
        hashes_of(looks, images)


def test_several_sets_and_their_validation_images_are_checked(settings, run_main, tmp_path):
    folder = tmp_path / "sets"
    write_images(folder, [f"{n}_{i}.jpg" for n in ("one", "two") for i in range(24)], seed=3)
    for name in ("one", "two"):
        rows = [f"{name}_{i}.jpg,{i % 7 + i / 9:.3f}" for i in range(24)]
        (folder / f"{name}.csv").write_text("\n".join(["image,mos", *rows]))
    sets = ["--dataset", f"csv:one={folder / 'one.csv'}", f"csv:two={folder / 'two.csv'}"]
    flags = ["--select_on", "val", "--val_fraction", 0.4, "--epochs", 1, "--no_spaq"]
    solver = HyperIQASolver(settings("resnet", *sets, *flags))
    solver.run()
    where = ["--log_dir", tmp_path / "logs", "--no_cache"]
    found = verdicts(run_main("certify.py", certify.main, solver.folder, *where, code=3).stdout)
    # This test is no train script.
    assert found.pop("settings")[0] == "cannot be checked"
    assert {verdict for verdict, _ in found.values()} == {"reproduced"}
    parts = ("one", "two", "one_val", "two_val")
    assert {f"{part} {figure}" for part in parts for figure in ("SRCC", "PLCC")} <= {*found}
    assert {"one pixels", "two records and split"} <= {*found}
    elsewhere = ["--dataset_path", f"one={tmp_path / 'gone.csv'}", f"two={folder / 'two.csv'}"]
    found = verdicts(
        run_main("certify.py", certify.main, solver.folder, *elsewhere, *where, code=3).stdout
    )
    assert found["two records, pixels and figures"][0] == "cannot be checked"
    assert found["weights"][0] == "reproduced"
