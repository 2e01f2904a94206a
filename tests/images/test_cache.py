import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import huge_header, jpeg_bytes, picture, write_images
from PIL import Image
from tqdm import tqdm

from hyperiqa.base.errors import UserError
from hyperiqa.images import decode as decoding
from hyperiqa.images.cache import ImageCache
from hyperiqa.images.decode import decode, read_header, resize_image, resized_size
from hyperiqa.images.perceptual_hash import near_duplicates, perceptual_hash


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", ["a.jpg", "b.jpg"], (80, 60))
    write_images(tmp_path / "images", ["c.png", "small.png"], (40, 100), seed=5)
    return sorted((tmp_path / "images").iterdir())


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(one[i], other[i]) for i in range(len(one)))


def folders_in(path):
    return [p for p in path.iterdir() if p.is_dir()]


def test_a_cached_image_is_the_decoded_and_resized_file(images, tmp_path):
    memory, built = (
        ImageCache("set", images, "50", 48),
        ImageCache("set", images, "50", 48, tmp_path / "cache"),
    )
    for i, path in enumerate(images):
        assert np.array_equal(
            memory[i], resize_image(decode(path), *resized_size(*read_header(path), "50", 48))
        )
    assert same(memory, built) and not built.was_there and memory.upscaled == 0
    found = ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert found.was_there and same(found, memory)
    assert (
        ImageCache("set", images, "none", 64).upscaled
        == ImageCache("set", images, "none", 64, tmp_path / "c").upscaled
        == 4
    )


@pytest.mark.parametrize("change", ["resize", "least side", "a file", "its time", "fewer files"])
def test_whatever_a_cache_depends_on_makes_another(images, tmp_path, change):
    first = ImageCache("set", images, "50", 48, tmp_path / "cache")
    paths, resize, least = images, "50", 48
    if change == "resize":
        resize = "51"
    elif change == "least side":
        least = 50
    elif change == "fewer files":
        paths = images[:3]
    elif change == "its time":
        os.utime(images[0], ns=(1, 1))
    else:
        write_images(images[0].parent, [images[0].name], (70, 60), seed=7)
    second = ImageCache("set", paths, resize, least, tmp_path / "cache")
    assert not second.was_there and second.folder != first.folder
    assert same(second, ImageCache("set", paths, resize, least))
    # What no longer matches its files goes; what another setting still needs stays.
    assert first.folder.exists() == (change not in ("a file", "its time"))


def build_in_child(paths, cache_dir, started):
    """Builds a cache whose second image never finishes decoding."""
    original = decoding.decode_and_resize

    def slow(path, size, exif_rotate):
        if path == paths[1]:
            started.set()
            time.sleep(60)
        return original(path, size, exif_rotate)

    decoding.decode_and_resize = slow
    tqdm.set_lock(
        threading.RLock()
    )  # its own is shared with the parent, and this process is killed while it holds it
    ImageCache("set", paths, "50", 48, cache_dir)


def test_a_killed_build_leaves_nothing_that_passes_for_a_cache(images, tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    child = context.Process(target=build_in_child, args=(images, tmp_path / "cache", started))
    child.start()
    assert started.wait(30)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert [p.name for p in folders_in(tmp_path / "cache")][0].endswith(".tmp")
    cache = ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert not cache.was_there and same(cache, ImageCache("set", images, "50", 48))
    assert folders_in(tmp_path / "cache") == [cache.folder]


def test_a_failed_build_leaves_nothing(images, tmp_path, monkeypatch):
    def broken(path, size, exif_rotate):
        raise MemoryError("our own bug")

    monkeypatch.setattr(decoding, "decode_and_resize", broken)
    with pytest.raises(MemoryError):
        ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert folders_in(tmp_path / "cache") == []


def test_two_runs_that_need_the_same_cache_build_it_once(images, tmp_path):
    made = []
    threads = [
        threading.Thread(
            target=lambda: made.append(ImageCache("set", images, "50", 48, tmp_path / "cache"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache.was_there for cache in made) == [False, True, True, True]
    assert all(same(cache, made[0]) for cache in made)


def test_a_damaged_cache_is_rebuilt(images, tmp_path):
    first = ImageCache("set", images, "50", 48, tmp_path / "cache")
    with (first.folder / "images.u8").open("r+b") as file:
        file.truncate(100)
    second = ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert not second.was_there and same(second, ImageCache("set", images, "50", 48))


@pytest.mark.parametrize(
    "index",
    ["[]", "3", '"x"', "null", "{}", "[" * 100_000, "{", b"\xff"]
    + [
        {name: value}
        for name in ("format", "sizes", "upscaled", "bad", "files", "digests", "looks")
        for value in (None, 7.5, "x", [1], [[1, 2, 3]], {"a": 1})
    ]
    + [{"sizes": [[-1, 5]]}, {"sizes": [[10**30, 0]]}, {"format": 3}, {"format": True}],
    ids=lambda index: str(index)[:30],
)
def test_an_index_of_the_wrong_kind_is_a_damaged_one(images, tmp_path, index):
    first = ImageCache("set", images[:1], "50", 48, tmp_path / "cache")
    path = first.folder / "index.json"
    if isinstance(index, dict):
        index = json.dumps({**json.loads(path.read_text()), **index})
    path.write_bytes(index if isinstance(index, bytes) else index.encode())
    second = ImageCache("set", images[:1], "50", 48, tmp_path / "cache")
    assert not second.was_there and same(second, first)


def tree(root):
    """What lies below a folder: each file's bytes, each link's target."""
    return {
        str(path.relative_to(root)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def write_folders_of_the_user(root, stale):
    """Folders whose names a cache could have; stale: a cache that no run can use any more."""
    files = {"notes.txt": b"mine", "index.json": b'{"files": [], "format": 1}'}
    digest = stale.name[-16:]
    names = ("set_none_mine", "set_50_384_photos", "set_50_", "set_features_x", "set")
    for name in (*names, f"set_50_{'0' * 16}", f"set_features_train_{'0' * 16}"):
        for file, content in files.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / file).write_bytes(content)
    # One with a file beside a cache's, one with a file of another length, links, and no folder.
    shutil.copytree(stale, root / f"set_50_{'1' * 16}")
    (root / f"set_50_{'1' * 16}/notes.txt").write_bytes(b"mine")
    shutil.copytree(stale, root / f"set_50_{'2' * 16}")
    (root / f"set_50_{'2' * 16}/images.u8").write_bytes(b"mine")
    shutil.copytree(stale, root / "elsewhere")
    (root / f"set_50_{'3' * 16}").symlink_to(root / "elsewhere")
    (root / f"set_50_{'4' * 16}").mkdir()
    for name in ("images.u8", "index.json"):
        (root / f"set_50_{'4' * 16}" / name).symlink_to(root / "elsewhere" / name)
    shutil.copytree(stale, root / f"set_50_{digest[:15]}")
    (root / f"set_50_{'5' * 16}").write_bytes(b"a file")


def test_no_folder_of_the_users_is_touched(images, tmp_path):
    stale = ImageCache("set", images, "50", 48, tmp_path / "cache").folder
    write_folders_of_the_user(tmp_path / "users", stale)
    shutil.copytree(tmp_path / "users", tmp_path / "cache", symlinks=True, dirs_exist_ok=True)
    os.utime(images[0], ns=(1, 1))
    ImageCache("set", images, "50", 48, tmp_path / "cache")
    after = tree(tmp_path / "cache")
    assert not stale.exists()
    assert tree(tmp_path / "users").items() <= after.items()


@pytest.mark.parametrize("place", ["the folder", "half built", "a link", "a file"])
def test_a_cache_that_must_be_built_anew_does_not_replace_files_of_the_users(
    images, tmp_path, place
):
    folder = ImageCache("set", images, "50", 48, tmp_path / "cache").folder
    shutil.rmtree(folder)
    users = tmp_path / "users"
    users.mkdir()
    (users / "photo.jpg").write_bytes(b"mine")
    taken = folder.with_name(f".{folder.name}.tmp") if place == "half built" else folder
    if place == "a link":
        taken.symlink_to(users)
    elif place == "a file":
        taken.write_text("mine")
    else:
        users.rename(taken)
    before = tree(tmp_path)
    other = "photo.jpg" if taken.is_dir() and not taken.is_symlink() else taken.name
    with pytest.raises(UserError) as problem:
        ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert str(problem.value) == (
        f"{taken}: expected nothing, or what an earlier run has stored, found {other}; "
        "move it away, or give --cache_dir PATH or --no_cache"
    )
    assert tree(tmp_path) == before


def test_a_stray_write_does_not_reach_the_file(images, tmp_path):
    cache = ImageCache("set", images, "50", 48, tmp_path / "cache")
    before = (cache.folder / "images.u8").read_bytes()
    cache[0][:] = 0
    assert (cache.folder / "images.u8").read_bytes() == before


def test_a_cache_folder_that_cannot_be_made_is_the_users_mistake(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match="file.*: the image cache cannot be written: .*; give --cache_dir PATH or --no_cache",
    ):
        ImageCache("set", images, "50", 48, tmp_path / "file")


def test_every_bad_file_is_named_with_its_reason(tmp_path):
    write_images(tmp_path, ["good.jpg"])
    bad = {
        "text.jpg": (b"hello", "not an image of a format that is read here"),
        "empty.jpg": (b"", "the file is empty"),
        "huge.bmp": (huge_header(), "absurdly large: 100000x100000 pixels"),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "cut.jpg").write_bytes(jpeg_bytes()[:900])  # its header is fine
    png = io.BytesIO()
    Image.fromarray(picture()).save(png, "PNG")
    (tmp_path / "cut.png").write_bytes(png.getvalue()[:5000])
    assert read_header(tmp_path / "cut.jpg") == (90, 120)
    paths = sorted(tmp_path.iterdir())
    for _ in range(2):  # found while building, remembered by the finished cache
        cache = ImageCache("set", paths, "none", 32, tmp_path / "cache")
        found = {path.name: reason for path, reason in cache.bad.items()}
        assert set(found) == {*bad, "gone.jpg", "cut.jpg", "cut.png"}
        assert {name: found[name] for name in bad} == {
            name: reason for name, (_, reason) in bad.items()
        }
        assert "truncated" in found["cut.jpg"] and found["gone.jpg"] == "No such file or directory"
    assert cache.was_there and np.array_equal(
        cache[cache.index[tmp_path / "good.jpg"]], decode(tmp_path / "good.jpg")
    )


def test_a_set_without_any_readable_image_is_cached_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    for was_there in (False, True):
        cache = ImageCache("set", [tmp_path / "a.jpg"], "384", 64, tmp_path / "cache")
        assert (cache.bytes, cache.was_there) == (0, was_there)
        assert cache.bad == {tmp_path / "a.jpg": "the file is empty"}


def test_a_data_set_larger_than_the_memory_it_may_use(tmp_path):
    """The mapped cache is not copied: opening it takes next to no memory of the process's own."""
    write_images(tmp_path, ["a.jpg"], (400, 300))
    built = ImageCache("set", [tmp_path / "a.jpg"], "3000", 32, tmp_path / "cache")
    del built
    before = private_bytes()
    cache = ImageCache("set", [tmp_path / "a.jpg"], "3000", 32, tmp_path / "cache")
    assert cache.was_there and cache.bytes == 3000 * 4000 * 3
    cache.crops(np.array([0]), np.array([1000]), np.array([1000]), 224)
    assert private_bytes() - before < cache.bytes / 4


def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_index_names_the_source_files(images, tmp_path):
    cache = ImageCache("set", images, "50", 48, tmp_path / "cache")
    files = json.loads((cache.folder / "index.json").read_text())["files"]
    assert [Path(name).name for name, _, _ in files] == [p.name for p in images]


def test_copies_look_alike_and_other_images_do_not(tmp_path):
    random = np.random.default_rng(0)
    scenes = []
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(128), np.fft.fftfreq(96))).clip(1 / 128)
    for _ in range(30):  # the larger the frequency the weaker, as in photographs
        wave = np.fft.irfft2(np.fft.rfft2(random.normal(size=(96, 128))) / frequency)
        scenes.append(
            np.repeat(np.clip(128 + 40 * wave / wave.std(), 0, 255)[..., None], 3, 2).astype(
                np.uint8
            )
        )
    looks = [perceptual_hash(scene) for scene in scenes]
    assert near_duplicates(looks, looks) == [(i, i) for i in range(30)]
    for changed in (
        lambda s: np.ascontiguousarray(s[:, ::-1]),
        lambda s: resize_image(s, 48, 64),
        lambda s: np.clip(s + random.normal(0, 20, s.shape), 0, 255).astype(np.uint8),
        lambda s: (s * 0.8).astype(np.uint8),
    ):
        found = near_duplicates([perceptual_hash(changed(scene)) for scene in scenes], looks)
        assert {i for i, j in found if i == j} >= {*range(28)} and all(i == j for i, j in found)
    assert near_duplicates(["", looks[0]], ["", looks[0]]) == [(1, 1)]


def test_looks_are_kept_with_the_digests(images, tmp_path):
    built = ImageCache("set", images, "50", 48, tmp_path / "cache")
    found = ImageCache("set", images, "50", 48, tmp_path / "cache")
    assert (
        found.was_there
        and found.hashes == built.hashes == ImageCache("set", images, "50", 48).hashes
    )
    assert all(len(each) == 16 for each in found.hashes) and len({*found.hashes}) > 1
