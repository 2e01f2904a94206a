import json
import shutil

import numpy as np
import pytest
import torch
from helpers import write_images

from hyperiqa.base.errors import Interrupted, UserError
from hyperiqa.images import features as feature_cache
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.features import Features, check_room

ROWS, WIDTH, BATCH = 10, 6, 4
WANTED = np.random.default_rng(0).normal(0, 9, (ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def cache(tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png"], (40, 40))
    paths = [tmp_path / "images" / name for name in ("a.png", "b.png")]
    return ImageCache("set", paths, "none", 32, tmp_path / "cache")


def features(cache, dtype="fp32", split="train", **depends_on):
    return Features(cache, split, (ROWS, WIDTH), dtype, {"encoder": "x", **depends_on})


def compute(seen, stop_at=None):
    def rows(start):
        assert start % BATCH == 0
        for first in range(start, ROWS, BATCH):
            if first == stop_at:
                raise Interrupted(2)
            seen.append(first)
            yield WANTED[first : first + BATCH]

    return rows


def test_rows_are_computed_once_and_found_by_later_runs(cache):
    seen = []
    features(cache).fill(compute(seen), BATCH)
    again = features(cache)
    again.fill(compute(seen), BATCH)
    assert seen == [0, 4, 8] and again.was_there
    assert torch.equal(again[np.array([9, 0, 9])], torch.from_numpy(WANTED[[9, 0, 9]]))


def test_sixteen_bits_round_and_refuse_what_they_cannot_hold(cache):
    half = features(cache, "fp16")
    half.fill(compute([]), BATCH)
    assert half.bytes == ROWS * WIDTH * 2
    assert torch.equal(half[np.arange(ROWS)], torch.from_numpy(WANTED.astype(np.float16)))
    with pytest.raises(
        UserError,
        match="--feature_dtype fp16: values reach 70000, expected at most 65504; give fp32",
    ):
        features(cache, "fp16", more=1).fill(
            lambda start: iter([np.full((ROWS, WIDTH), 7e4, np.float32)]), BATCH
        )
    with pytest.raises(UserError, match="--feature_dtype fp32: values reach nan"):
        features(cache, more=2).fill(
            lambda start: iter([np.full((ROWS, WIDTH), np.nan, np.float32)]), BATCH
        )


def test_all_that_rows_depend_on_is_in_the_key(cache, tmp_path):
    others = [
        features(cache, "fp16"),
        features(cache, split="test"),
        features(cache, encoder="y"),
        Features(cache, "train", (ROWS, WIDTH + 1), "fp32", {"encoder": "x"}),
        Features(
            ImageCache("set", cache.paths, "40x40", 32, tmp_path / "cache"),
            "train",
            (ROWS, WIDTH),
            "fp32",
            {},
        ),
    ]
    folders = {str(each.folder) for each in [features(cache), *others]}
    assert len(folders) == 6 and features(cache).folder == features(cache).folder


def test_a_build_that_was_stopped_goes_on_at_a_whole_batch(cache, monkeypatch):
    seen = []
    with pytest.raises(Interrupted):
        features(cache).fill(compute(seen, stop_at=8), BATCH)
    assert not features(cache).was_there
    partial = next(features(cache).folder.parent.glob(".set_features_*.tmp")) / "features.bin"
    partial.write_bytes(partial.read_bytes()[:-5])  # as a crash may leave it
    assert features(cache).missing == (ROWS - 8) * WIDTH * 4 + 5
    whole = features(cache)
    whole.fill(compute(seen), BATCH)
    assert seen == [0, 4, 4, 8]
    assert torch.equal(whole[np.arange(ROWS)], torch.from_numpy(WANTED))
    assert not list(whole.folder.parent.glob(".*.tmp"))


def test_without_a_cache_the_rows_lie_in_memory(cache):
    lone = features(ImageCache("set", cache.paths, "none", 32))
    lone.fill(compute([]), BATCH)
    assert lone.folder is None and torch.equal(lone[np.arange(ROWS)], torch.from_numpy(WANTED))


def test_the_disk_is_asked_before_and_only_for_what_is_missing(cache, monkeypatch):
    features(cache).fill(compute([]), BATCH)
    there, missing = features(cache), features(cache, "fp16")
    parts = {"train": there, "test": missing}
    assert check_room(parts)[0].endswith(f"found in {there.folder}")
    assert check_room(parts)[1] == (
        f"Features of test: 10 patches of 6 values in fp16, 0.00 GB, to compute in {missing.folder}"
    )
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: type("Usage", (), {"free": missing.bytes - 1})()
    )
    with pytest.raises(
        UserError, match=r"the features need 0.0 GB in .*, which has 0.0 GB free; give --cache_dir"
    ):
        check_room(parts)
    check_room({"train": there})


def test_features_of_images_that_changed_go_when_new_ones_come(cache):
    old = features(cache)
    old.fill(compute([]), BATCH)
    kept = features(cache, encoder="z")
    kept.fill(compute([]), BATCH)
    assert old.folder.exists()
    index = json.loads((old.folder / "index.json").read_text())
    (old.folder / "index.json").write_text(json.dumps({**index, "images": "set_none_gone"}))
    features(cache, encoder="w").fill(compute([]), BATCH)
    assert not old.folder.exists() and kept.folder.exists()


def test_features_of_version_0_8_are_read_and_go_when_their_images_changed(cache):
    old = features(cache)
    old.fill(compute([]), BATCH)
    index = old.folder / "index.json"
    index.write_text(json.dumps({"images": cache.folder.name}))
    assert features(cache).was_there
    index.write_text(json.dumps({"images": "set_none_gone"}))
    features(cache, encoder="w").fill(compute([]), BATCH)
    assert not old.folder.exists()


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"images": 3}', '{"images": "a", "mine": 1}', '{"bytes": 0}', "7"]
)
def test_folders_that_are_no_features_stay(cache, index):
    mine = cache.folder.with_name(f"set_features_train_{'0' * 16}")
    mine.mkdir()
    (mine / "features.bin").write_bytes(b"mine")
    (mine / "index.json").write_text(index)
    other = cache.folder.with_name("set_features_x")
    shutil.copytree(mine, other)
    rows = features(cache)
    rows.fill(compute([]), BATCH)
    assert [path.name for path in sorted(mine.iterdir())] == ["features.bin", "index.json"]
    assert (other / "index.json").read_text() == index
    (rows.folder / "index.json").write_text(index)
    again = features(cache)
    assert not again.was_there
    again.fill(compute([]), BATCH)
    assert features(cache).was_there


def test_the_names_of_the_precisions_are_the_flags():
    from hyperiqa.training.flags import FEATURE_DTYPES

    assert (*feature_cache.DTYPES, "none") == FEATURE_DTYPES
