import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, save_random_model
from PIL import Image

import hyperiqa
from hyperiqa import __main__
from hyperiqa.base.errors import UserError
from hyperiqa.scoring.ensemble import Ensemble

KONIQ = {
    "backbone": "swin_nano",
    "fusion": "none",
    "patch_size": 64,
    "resize": "72",
    "exif_rotate": False,
    "dataset": "koniq-10k",
    "score_range": [3.0, 90.0],
    "higher_is_better": True,
    "test_crop": "grid",
    "test_patch_num": 3,
}
KADID = {**KONIQ, "dataset": "kadid-10k", "score_range": [1.2, 4.8], "nominal_range": [1.0, 5.0]}
# DMOS: lower is better. Its nominal range, which the description lacks, is known of the set.
CSIQ = {
    **KONIQ,
    "dataset": "csiq",
    "score_range": [0.1, 0.9],
    "higher_is_better": False,
    "patch_size": 32,
    "resize": "48",
    "test_crop": "center",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    descriptions = {"koniq": KONIQ, "kadid": KADID, "csiq": CSIQ}
    return {
        name: save_random_model(folder / f"{name}.pkl", description, spread=30, seed=seed)
        for seed, (name, description) in enumerate(descriptions.items())
    }


@pytest.fixture
def photos(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(picture(90 + 20 * i, 150 - 10 * i, seed=i)).save(
            tmp_path / "photos" / f"{i}.png"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def run(*words):
    return __main__.main(["--device", "cpu", *map(str, words)])


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def scores(path):
    return np.array([float(row["score"]) for row in rows(path)])


def test_scores_are_the_plain_mean_on_the_scale_of_the_first_model(models, photos):
    koniq, kadid, csiq = models.values()
    for name, path in models.items():
        run(path, "photos", "--output", f"{name}.csv")
    # Quality from 0 to 1.
    quality = (
        scores("koniq.csv") / 100 + (scores("kadid.csv") - 1) / 4 + (1 - scores("csiq.csv"))
    ) / 3
    run(koniq, "photos", "--also", kadid, csiq, "--output", "a.csv")
    np.testing.assert_allclose(scores("a.csv"), 100 * quality, rtol=1e-6)
    run(kadid, "photos", "--also", csiq, koniq, "--output", "b.csv")
    np.testing.assert_allclose(scores("b.csv"), 1 + 4 * quality, rtol=1e-6)
    run(csiq, "photos", "--also", koniq, kadid, "--output", "c.csv")
    np.testing.assert_allclose(scores("c.csv"), 1 - quality, rtol=1e-6)


def test_a_flag_holds_for_all_models(models, photos):
    koniq, kadid, _ = models.values()
    flags = ("--resize", "80", "--crops", 2)
    for name in ("koniq", "kadid"):
        run(models[name], "photos", *flags, "--output", f"{name}.csv")
    run(koniq, "photos", "--also", kadid, *flags, "--output", "a.csv")
    plain = (scores("koniq.csv") + 25 * (scores("kadid.csv") - 1)) / 2
    np.testing.assert_allclose(scores("a.csv"), plain, rtol=1e-6)


def test_the_scale_of_a_set_that_all_models_know(models, photos, tmp_path):
    scales = {
        "koniq-10k": {"factor": 1.0, "offset": 0.0, "nominal_range": [0.0, 100.0]},
        "kadid-10k": {"factor": 20.0, "offset": -7.0, "nominal_range": [1.0, 5.0]},
    }
    paths = [
        save_random_model(tmp_path / f"{i}.pkl", {**KONIQ, "scales": scales}, spread=30, seed=i)
        for i in (3, 4)
    ]
    for i, path in enumerate(paths):
        run(path, "photos", "--scale", "kadid-10k", "--output", f"{i}.csv")
    words = (paths[0], "photos", "--also", paths[1], "--scale")
    run(*words, "kadid-10k", "--output", "both.csv")
    np.testing.assert_allclose(
        scores("both.csv"), (scores("0.csv") + scores("1.csv")) / 2, rtol=1e-5
    )
    with pytest.raises(UserError, match="--scale kadid-10k: the model was trained on koniq-10k"):
        run(paths[0], "photos", "--also", models["koniq"], "--scale", "kadid-10k")


def test_rows_of_other_ensembles_are_not_mixed_in(models, photos):
    koniq, kadid, csiq = models.values()
    run(koniq, "photos", "--also", kadid, csiq, "--output", "out.csv")
    before = Path("out.csv").read_bytes()
    digests = [hyperiqa.load(path, device="cpu").weights for path in models.values()]
    assert {row["made_with"] for row in rows("out.csv")} == {
        f"weights={'+'.join(digests)} resize=72+72+48 patch_size=64+64+32 crops=3+3+1 exif_rotate=no precision=fp32"
    }
    with pytest.raises(
        UserError, match=r"weights \w+\+\w+\+\w+, .*; this command has weights \w+\+"
    ):
        run(koniq, "photos", "--also", kadid, "--output", "out.csv")
    with pytest.raises(UserError, match=r"resize 72\+72\+48.*this command has resize 80"):
        run(koniq, "photos", "--also", kadid, csiq, "--resize", "80", "--output", "out.csv")
    assert run(koniq, "photos", "--also", kadid, csiq, "--output", "out.csv") == 0
    assert Path("out.csv").read_bytes() == before


def test_shards_json_a_sheet_and_a_broken_image(models, photos, capfd):
    koniq, _, csiq = models.values()
    (photos / "4.png").write_text("no image")
    words = (koniq, "photos", "--also", csiq)
    assert run(*words, "--format", "jsonl", "--sheet", "sheet.html") == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["score"] is None for line in lines] == [False] * 4 + [True]
    assert "Scores by koniq.pkl + csiq.pkl" in Path("sheet.html").read_text()
    with tarfile.open("photos.tar", "w") as tar:
        tar.add("photos")
    run(koniq, "photos.tar", "--also", csiq, "--output", "rows")
    in_shard = [float(row["score"]) for row in rows("rows/photos.csv") if row["score"]]
    assert in_shard == [line["score"] for line in lines[:4]]


@pytest.mark.parametrize("flag", ["--meaning", "--above 50", "--compare", "--map m"])
def test_what_belongs_to_a_single_model_is_refused(models, photos, flag):
    name = flag.split()[0]
    with pytest.raises(
        UserError, match=f"^contradictory flags: --also and {name}, which is for a single model$"
    ):
        run(models["koniq"], "photos", "--also", models["csiq"], *flag.split())


def test_every_model_that_is_missing_is_named(photos):
    with pytest.raises(
        UserError, match=r"^a.pkl: no such file .*; c.pkl: no such file [^;]*;[^;]*$"
    ):
        run("a.pkl", "photos", "--also", "c.pkl")


def test_a_model_that_is_named_twice_is_refused(models, photos):
    koniq, kadid = models["koniq"], models["kadid"]
    with pytest.raises(UserError, match=r"^--also: .*kadid.pkl is named twice$"):
        run(koniq, "photos", "--also", kadid, kadid)
    with pytest.raises(UserError, match="is named twice$"):
        run(koniq, "photos", "--also", koniq)


def test_in_python_an_image_is_decoded_once_for_models_that_prepare_it_alike(models, photos):
    members = [hyperiqa.load(path, device="cpu") for path in models.values()]
    ensemble = Ensemble(members)
    koniq, kadid, csiq = ensemble.patches(photos / "0.png")
    assert koniq is kadid and csiq.shape == (1, 32, 32, 3)
    quality = [
        members[0].score(photos / "0.png") / 100,
        (members[1].score(photos / "0.png") - 1) / 4,
        1 - members[2].score(photos / "0.png"),
    ]
    assert ensemble.score(photos / "0.png") == pytest.approx(100 * np.mean(quality), rel=1e-6)
    assert ensemble.score_patches([]).shape == (0,)


def test_a_scale_by_name_maps_no_range(models, photos, tmp_path):
    # Both score on the scale of KonIQ-10k, whatever the scores that the first one was trained on.
    scales = {"koniq-10k": {"factor": 2.0, "offset": 5.0, "nominal_range": [0.0, 100.0]}}
    other = save_random_model(
        tmp_path / "other.pkl", {**KONIQ, "scales": scales}, spread=30, seed=5
    )
    first, second = (hyperiqa.load(path, device="cpu") for path in (models["koniq"], other))
    run(models["koniq"], "photos", "--also", other, "--scale", "koniq-10k", "--output", "a.csv")
    plain = [
        (first.score(image) + (second.score(image) - 5) / 2) / 2
        for image in sorted(photos.iterdir())
    ]
    np.testing.assert_allclose(scores("a.csv"), plain, rtol=1e-5)
