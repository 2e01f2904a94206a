"""What a model's calibration says of single images, in Python and by predict.py."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import save_random_model, write_images
from PIL import Image
from test_predict import DESCRIPTION, on_terminal

import hyperiqa
from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.model import checkpoints
from hyperiqa.scoring.quality_model import load
from hyperiqa.scoring.score_files import MOST_COMPARED, differences
from hyperiqa.stats.calibration import Calibration

USUAL = ["image", "score", "error", "made_with"]

# The description of a model that scores images in no time.
SCORER = {**DESCRIPTION, "backbone": "swin_nano"}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A model with calibrations by its real scores of 60 images, on two sets of opinions.

    koniq-10k is a set of the training, on whose scale the model scores. live is another set, whose
    opinions mean badness, from 0 to 10.
    """
    folder = tmp_path_factory.mktemp("calibrated")
    model = load(save_random_model(folder / "plain.pkl", SCORER, 30), "cpu")
    write_images(folder / "images", [f"{i}.png" for i in range(60)])
    images = sorted((folder / "images").iterdir())
    scores = np.array([scored.score for scored in model.score_all(images)])
    noise = np.random.default_rng(0).normal(0, 0.4, len(scores))
    quality = (scores - scores.mean()) / scores.std() + noise
    calibrations = {
        name: {
            **Calibration.of(scores, opinions).plain(),
            "which": "test images",
            "model_scale": name == "koniq-10k",
            "chose_epoch": False,
            "score_range": score_range,
            "higher_is_better": name == "koniq-10k",
        }
        for name, opinions, score_range in (
            ("koniq-10k", 50 + 12 * quality, [0.0, 100.0]),
            ("live", 5 - quality, [0.0, 10.0]),
        )
    }
    scales = {
        "koniq-10k": {"factor": 1.0, "offset": 0.0, "nominal_range": [0.0, 100.0]},
        "csiq": {"factor": -100.0, "offset": 100.0, "nominal_range": [0.0, 1.0]},
    }
    described = {**SCORER, "calibration": calibrations, "scales": scales}
    return save_random_model(folder / "calibrated.pkl", described, 30)


@pytest.fixture(scope="module")
def model(calibrated):
    return load(calibrated, device="cpu")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Four pictures and a file that is none."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"), ["a.png", "b.png", "c.png", "d.png"], seed=5)
    Path("photos/e.png").write_text("no image")
    return tmp_path / "photos"


def calibration_of(model, name):
    return Calibration.from_plain(model.description["calibration"][name])


def run(*words):
    return __main__.main(["--device", "cpu", *map(str, words)])


def read(path):
    text = Path(path).read_text()
    if Path(path).suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines()))


def test_an_image_is_explained(model, photos):
    score = model.score("photos/a.png")
    for name in ("koniq-10k", "live"):
        calibration = calibration_of(model, name)
        explained = model.explain("photos/a.png", reference=name, level=0.8)
        assert isinstance(explained, hyperiqa.Explained)
        assert (explained.score, explained.reference) == (score, name)
        assert explained.percentile == calibration.percentile(score)
        assert (explained.low, explained.high) == calibration.interval(score, 0.8)
        assert explained.keep is None
    # The first one is the reference, with 90 % intervals.
    explained = model.explain(Image.open("photos/a.png"))
    assert explained.reference == "koniq-10k"
    assert (explained.low, explained.high) == calibration_of(model, "koniq-10k").interval(score)


def test_the_better_image_is_the_one_of_the_higher_quality(model, photos):
    scores = [model.score(f"photos/{name}.png") for name in "ad"]
    expected = calibration_of(model, "koniq-10k").better(*scores)
    assert model.better("photos/a.png", "photos/d.png") == expected
    # A high MOS of this set is bad.
    on_live = model.better("photos/a.png", "photos/d.png", reference="live")
    assert on_live == pytest.approx(1 - calibration_of(model, "live").better(*scores))
    assert (on_live - 0.5) * (expected - 0.5) > 0


def test_a_stream_is_explained_where_asked_for(model, photos):
    images = sorted(photos.iterdir())
    plain = list(model.score_all(images))
    explained = list(model.score_all(images, meaning=model.meaning(level=0.7)))
    assert [scored.meaning for scored in plain] == [None] * 5
    assert [scored.score for scored in explained] == [scored.score for scored in plain]
    assert explained[4].meaning is None and explained[4].problem
    for scored in explained[:4]:
        assert scored.meaning == model.meaning(level=0.7).of(scored.score)


def test_a_score_outside_the_calibration_is_noted(model):
    meaning = model.meaning()
    least, most = meaning.calibration.quantiles[0], meaning.calibration.quantiles[-1]
    assert meaning.of(most).note is None
    for score, percentile in ((most + 1, 100), (least - 1, 0)):
        explained = meaning.of(score)
        assert explained.percentile == percentile
        assert explained.note == f"the calibration knows scores from {least:.4g} to {most:.4g} only"


@pytest.mark.parametrize(("name", "bad"), [("koniq-10k", False), ("live", True)])
def test_what_to_keep(model, name, bad):
    calibration = calibration_of(model, name)
    threshold = float(np.median(calibration.curve))
    meaning = model.meaning(name, above=threshold, sure=0.8)
    answers = set()
    for score in np.linspace(calibration.quantiles[0], calibration.quantiles[-1], 40):
        probability = calibration.above(score, threshold)
        if bad:
            probability = 1 - probability
        expected = "yes" if probability >= 0.8 else "no" if probability <= 0.2 else "unsure"
        assert meaning.of(score).keep == expected
        answers.add(expected)
    assert answers == {"yes", "no", "unsure"}
    # The best image is kept, whichever way the opinions run.
    assert meaning.of(calibration.quantiles[-1]).keep == "yes"


def test_a_calibration_follows_the_scale(calibrated, model, photos):
    """The set csiq has 0 at its best, where the model's own scale has 100."""
    on_csiq = load(calibrated, device="cpu")
    on_csiq.use_scale("csiq")
    for name in "abcd":
        image = f"photos/{name}.png"
        expected, explained = model.explain(image), on_csiq.explain(image)
        assert explained.score == pytest.approx((100 - expected.score) / 100, abs=1e-4)
        assert explained.percentile == pytest.approx(100 - expected.percentile, abs=0.1)
        ends = [(100 - expected.high) / 100, (100 - expected.low) / 100]
        assert [explained.low, explained.high] == pytest.approx(ends, abs=1e-3)
        # The opinions of a set that the model was not trained on stay as they are.
        expected, explained = (m.explain(image, "live") for m in (model, on_csiq))
        ends = [expected.low, expected.high]
        assert [explained.low, explained.high] == pytest.approx(ends, abs=1e-2)
    for name in ("koniq-10k", "live"):
        first, second = "photos/a.png", "photos/d.png"
        expected = model.better(first, second, name)
        assert on_csiq.better(first, second, name) == pytest.approx(expected, abs=0.02)
    with pytest.raises(UserError, match="^--above 50: the MOS of koniq-10k goes from 0 to 1$"):
        on_csiq.meaning(above=50)


def test_what_cannot_be_explained_is_refused(calibrated, model, tmp_path):
    state, description = checkpoints.load_model(calibrated)
    checkpoints.save_safetensors(
        tmp_path / "plain.safetensors", state, {**description, "calibration": {}}
    )
    plain = load(tmp_path / "plain.safetensors", device="cpu")
    for refused in (lambda: plain.explain("x.png"), lambda: plain.better("x.png", "y.png")):
        with pytest.raises(UserError, match="^the model has no calibration, .* --calibrate OUT"):
            refused()
    with pytest.raises(
        UserError, match="^--reference spaq: the model has calibrations of koniq-10k, live$"
    ):
        model.meaning("spaq")
    with pytest.raises(UserError, match=r"\b60 images .* found .*0\.99$"):
        model.meaning(level=0.99)
    with pytest.raises(UserError, match="^--above 20: the MOS of live goes from 0 to 10$"):
        model.meaning("live", above=20)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_have_the_columns_that_are_asked_for(calibrated, model, photos, form, capfd):
    assert run(calibrated, "photos", "--output", f"plain.{form}") == 1
    assert "rest on" not in capfd.readouterr().err
    words = (calibrated, "photos", "--meaning", "--level", 0.8, "--above", 50, "--sure", 0.7)
    assert run(*words, "--output", f"full.{form}") == 1
    said = capfd.readouterr().err
    line = "Percentiles, 80 % intervals and probabilities rest on 60 images of koniq-10k "
    assert said.startswith(f"{line}(test images).\n") and said.count("rest on") == 1
    assert "was made with" not in said
    plain, full = read(f"plain.{form}"), read(f"full.{form}")
    assert list(plain[0]) == USUAL
    assert list(full[0]) == [*USUAL, "percentile", "low", "high", "keep", "note"]
    meaning = model.meaning(None, 0.8, 50, 0.7)
    for before, row in zip(plain, full, strict=True):
        assert [row[name] for name in USUAL[:3]] == [before[name] for name in USUAL[:3]]
        assert row["made_with"].startswith(f"{before['made_with']} calibration=")
        assert row["made_with"].endswith(" level=0.8 above=50 sure=0.7")
        if row["error"]:
            assert {row[name] for name in ("percentile", "low", "high", "keep")} <= {"", None}
            continue
        explained = vars(meaning.of(model.score(row["image"])))
        for name in ("percentile", "low", "high"):
            assert float(row[name]) == pytest.approx(explained[name], abs=0.02)
        assert row["keep"] == explained["keep"]
    run(calibrated, "photos", "--above", 50, "--output", f"keep.{form}")
    assert list(read(f"keep.{form}")[0]) == [*USUAL, "keep", "note"]


def test_rows_of_other_questions_are_not_mixed(calibrated, photos):
    plain, meaning, above = [], ["--meaning"], ["--above", "50"]
    for form in ("csv", "jsonl"):
        for name, flags in {"plain": plain, "meaning": meaning, "above": above}.items():
            run(calibrated, "photos/a.png", *flags, "--output", f"{name}.{form}")
    for output, flags in (
        ("plain.csv", meaning),
        ("plain.jsonl", meaning),
        ("meaning.csv", plain),
        ("meaning.csv", [*meaning, "--reference", "live"]),
        ("meaning.csv", [*meaning, *above]),
        ("above.jsonl", ["--above", "51"]),
        ("above.jsonl", [*above, "--sure", "0.8"]),
    ):
        before = Path(output).read_bytes()
        with pytest.raises(UserError, match=f"^--output {output}: its rows (were made|have)"):
            run(calibrated, "photos", *flags, "--output", output)
        assert Path(output).read_bytes() == before
    with pytest.raises(UserError) as refused:
        run(calibrated, "photos", "--meaning", "--output", "plain.csv")
    assert str(refused.value) == (
        "--output plain.csv: its rows have the columns image,score,error,made_with; this command "
        "writes image,score,error,made_with,percentile,low,high,note: give another --output, or "
        "the flags of before"
    )
    with pytest.raises(UserError, match="made with level 0.9; this command has level 0.8; scores"):
        run(calibrated, "photos", "--meaning", "--level", 0.8, "--output", "meaning.csv")


def test_an_interrupted_output_is_gone_on_with(calibrated, photos):
    words = (calibrated, "photos", "--meaning", "--above", 50)
    for form in ("csv", "jsonl"):
        whole, cut = Path(f"whole.{form}"), Path(f"cut.{form}")
        assert run(*words, "--output", whole) == 1
        cut.write_bytes(whole.read_bytes()[:-300])
        assert run(*words, "--output", cut, "--sheet", "s.html") == 1
        assert [row["image"] for row in read(cut)] == [row["image"] for row in read(whole)]
        assert [row["keep"] for row in read(cut)] == [row["keep"] for row in read(whole)]


def test_settings_that_the_calibration_was_not_made_with_are_said(calibrated, photos, capfd):
    for flags, made, now in (
        (["--crops", 2], "crops 1", "crops 2"),
        (
            ["--resize", "80", "--exif_rotate"],
            "resize 72, exif_rotate no",
            "resize 80, exif_rotate yes",
        ),
        (["--precision", "bf16"], "precision fp32", "precision bf16"),
        (["--crops", 1, "--resize", "72"], None, None),
    ):
        run(calibrated, "photos/a.png", "--meaning", *flags)
        lines = capfd.readouterr().err.splitlines()
        expected = (
            f"The calibration was made with {made}, and these scores with {now}: what it says of "
            "them may be wrong."
        )
        assert lines[1:] == ([expected] if made else [])


def test_a_record_says_what_a_calibration_was_made_with(model):
    meaning = model.meaning("live")
    entry = {"test_crop": "grid", "test_patch_num": 3, "resize": "none"}
    meaning.entry = {**meaning.entry, "record": entry}
    now = "resize=none patch_size=64 crops=3 exif_rotate=no precision=fp32"
    assert meaning.caution(model.trained, now) == ""
    del meaning.entry["record"]
    # A run scores the sets that it is only tested on at sizes of their own.
    trained = {**model.trained, "cross_resize": {"live": "none"}}
    assert "crops 1, and these scores with crops 3:" in meaning.caution(trained, now)


def test_differences_name_what_differs():
    assert differences("a=1 b=2", "a=1 b=2") == ("", "")
    assert differences("a=1 b=2", "a=3 b=2 c=x") == ("a 1, c unknown", "a 3, c x")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_pairs_are_compared(calibrated, model, photos, form, capfd):
    assert run(calibrated, "photos", "--compare", "--output", f"pairs.{form}") == 1
    said = capfd.readouterr().err
    assert f"pairs.{form}: 6 pairs\n1 of 5 images could not be scored: photos/e.png (" in said
    rows = read(f"pairs.{form}")
    names = [f"photos/{name}.png" for name in "abcd"]
    pairs = [(row["first"], row["second"]) for row in rows]
    assert pairs == list(itertools.combinations(names, 2))
    calibration = calibration_of(model, "koniq-10k")
    for row in rows:
        scores = [model.score(row[name]) for name in ("first", "second")]
        assert list(row) == ["first", "second", "probability"]
        assert float(row["probability"]) == pytest.approx(calibration.better(*scores), abs=0.02)
    with pytest.raises(UserError, match=f"^--output pairs.{form}: exists; --compare writes a new"):
        run(calibrated, "photos", "--compare", "--output", f"pairs.{form}")
    run(calibrated, "photos", "--compare", "--reference", "live", "--format", form)
    assert capfd.readouterr().out.count("photos/") == 12


def test_a_terminal_gets_sentences(calibrated, model, photos, capfd):
    scale = "0..100, higher is better (koniq-10k)"
    meaning = model.meaning(above=50)
    shown = on_terminal(capfd, calibrated, "photos", "--meaning", "--above", 50)
    first, *lines, last = shown.splitlines()
    assert first == f"Scores on a scale of {scale}:"
    for name, line in zip("abcd", lines, strict=True):
        explained = meaning.of(model.score(f"photos/{name}.png"))
        remark = (
            f"percentile {explained.percentile:.0f}, MOS from {explained.low:.3g} to "
            f"{explained.high:.3g}, keep: {explained.keep}"
        )
        assert line.startswith(f"{explained.score:8.1f}  photos/{name}.png  ({remark}")
    assert last == "       –  photos/e.png  (not an image of a format that is read here)"
    shown = on_terminal(capfd, calibrated, "photos/a.png", "--above", 50)
    score = model.score("photos/a.png")
    assert shown.startswith(
        f"photos/a.png  {score:.1f} of {scale}  (keep: {meaning.of(score).keep}"
    )
    # The better image comes first.
    shown = on_terminal(capfd, calibrated, "photos/a.png", "photos/d.png", "--compare")
    names = ["photos/a.png", "photos/d.png"]
    probability = model.better(*names)
    if probability < 0.5:
        names, probability = names[::-1], 1 - probability
    assert shown == f"{names[0]} is better than {names[1]} with probability {probability:.2f}\n"


def test_too_few_or_too_many_images_are_not_compared(calibrated, photos, monkeypatch):
    message = r"^--compare: expected 2 to 1,500 images, found "
    with pytest.raises(UserError, match=f"{message}1$"):
        run(calibrated, "photos/a.png", "--compare")
    for number in range(MOST_COMPARED + 1):
        Path(f"photos/{number}.png").touch()
    with pytest.raises(UserError, match=f"{message}1,506$"):
        run(calibrated, "photos", "--compare")
    Path("list.txt").write_text("photos/b.png\n")
    with Path("list.txt").open() as piped:
        monkeypatch.setattr("sys.stdin", piped)
        with pytest.raises(UserError, match=f"{message}1$"):
            run(calibrated, "-", "--compare")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--level 0.8", "--level needs --meaning"),
        ("--sure 0.8", "--sure needs --above"),
        ("--reference live", "--reference needs --meaning or --above or --compare"),
        (
            "--meaning --level 1",
            "--level 1.0: expected a number between 0 and 1",
        ),
        ("--above 5 --sure 0.4", "--sure 0.4: expected a number from 0.5 to 1"),
        (
            "--compare --meaning --above 5 --map m --sheet s.html",
            "contradictory flags: --compare and --meaning; contradictory flags: --compare and "
            "--above; contradictory flags: --compare and --sheet; contradictory flags: --compare "
            "and --map",
        ),
        ("--above nan", "--above nan: expected a number"),
    ],
)
def test_mistakes(calibrated, photos, words, message):
    with pytest.raises(UserError) as refused:
        __main__.parse([str(calibrated), "photos", *words.split()])
    assert str(refused.value) == message
