import os
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from hyperiqa.base.errors import UserError
from hyperiqa.scoring import image_sources
from hyperiqa.scoring.image_sources import find_images, paths_from, without_repeats


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A tree of empty files (nothing here opens them), with the current folder above it."""
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        "sub/c.gif",
        "sub/deep/d.webp",
        ".hidden.jpg",
        ".thumbs/e.jpg",
        "sub/x.jpg/f.tif",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


BELOW = [
    "photos/a.png",
    "photos/b.JPG",
    "photos/sub/c.gif",
    "photos/sub/deep/d.webp",
    "photos/sub/x.jpg/f.tif",
]


def test_a_folder_stands_for_the_images_in_and_below_it(photos):
    assert find_images(["photos"]) == find_images(["./photos/"]) == BELOW
    assert find_images(["photos/sub/x.jpg"]) == BELOW[-1:]
    assert find_images(["photos/.thumbs"]) == ["photos/.thumbs/e.jpg"]


def test_links_are_followed_and_loops_harmless(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.jpg").touch()
    (photos / "sub" / "there").symlink_to(tmp_path / "elsewhere")
    (photos / "sub" / "deep" / "up").symlink_to(photos)
    (photos / "sub" / "deep" / "self").symlink_to(photos / "sub" / "deep")
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    assert find_images(["photos"]) == sorted([*BELOW, "photos/gone.jpg", "photos/sub/there/g.jpg"])
    assert find_images(["photos/**/*.jpg"]) == ["photos/gone.jpg", "photos/sub/x.jpg/f.tif"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.png", BELOW[:1]),
        ("photos/*", BELOW),
        ("photos/**", BELOW),
        ("photos/**/*.gif", ["photos/sub/c.gif"]),
        ("photos/sub/*/[de].webp", ["photos/sub/deep/d.webp"]),
        ("p*s/.h*", ["photos/.hidden.jpg"]),
    ],
)
def test_patterns(photos, pattern, expected):
    assert sorted(set(find_images([pattern]))) == expected


def test_what_is_named_itself_is_tried_whatever_its_suffix(photos):
    (photos / "really[1].jpg").touch()
    assert find_images(["photos/notes.txt", "photos/really[1].jpg"]) == [
        "photos/notes.txt",
        "photos/really[1].jpg",
    ]


def test_a_folder_with_brackets_in_its_name_is_no_pattern(photos):
    (photos / "a[1]").mkdir()
    (photos / "a[1]" / "x.png").touch()
    (photos / "a1").mkdir()
    (photos / "a1" / "y.png").touch()
    assert find_images(["photos/a[1]/*.png"]) == ["photos/a[1]/x.png"]
    assert find_images(["photos/a[12]/*.png"]) == ["photos/a1/y.png"]
    with pytest.raises(UserError, match=r"photos/a\[1\]/gone.png: no such file or folder"):
        find_images(["photos/a[1]/gone.png"])


def test_results_do_not_become_sources(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    for source in ("photos", str(photos), "link", "photos/*"):
        kept = find_images([source], {(photos / "a.png").resolve()})
        assert [name.rpartition("/")[2] for name in kept] == [
            name.rpartition("/")[2] for name in BELOW[1:]
        ]
    with pytest.raises(UserError, match="^photos/a.png: a result, which is no image to score$"):
        find_images(["photos/a.png"], {(photos / "a.png").resolve()})


def save_map(folder, image, made="m"):
    mark = PngImagePlugin.PngInfo()
    mark.add_text(image_sources.MARK, made)
    path = image_sources.map_path(folder, image)
    Image.new("RGB", (4, 3)).save(path, pnginfo=mark)
    return path


def test_maps_of_any_run_do_not_become_sources(photos):
    for folder in (photos, photos / "maps"):
        folder.mkdir(exist_ok=True)
        path = save_map(folder, "photos/a.png", "weights=1 resize=2")
        assert image_sources.mark_of(path) == "weights=1 resize=2"
    assert find_images(["photos"]) == find_images(["photos/**", *BELOW])[: len(BELOW)] == BELOW
    with pytest.raises(
        UserError, match="maps: no images in this folder; .*: a result, which is no"
    ):
        find_images(["photos/maps", str(path)])
    # A photograph that is called like a map, one that is damaged, and one that never ends.
    (photos / "sub" / path.name).write_bytes(path.read_bytes()[:30])
    Image.new("RGB", (4, 3)).save(photos / path.name)
    os.mkfifo(photos / f"pipe-{'0' * 16}.png")
    kept = find_images(["photos"])
    assert len(kept) == len(BELOW) + 3 and str(photos.name + "/" + path.name) in kept


def test_names_of_maps_are_unique_short_and_never_hidden(tmp_path):
    images = [
        "a b.jpg",
        "a_b.jpg",
        "a/b.jpg",
        "./a/../a/c.jpg",
        "山" * 81 + ".jpg",
        "é" * 120 + ".jpg",
        ".hidden.jpg",
        "...jpg",
        "-rf",
        "\x1b[2J.jpg",
        os.fsdecode(b"latin\xe9.jpg"),
        os.fsdecode(b"latin\xe8.jpg"),
        "two\nlines.jpg",
        *(f"{'long' * 60}/{i}{'x' * 240}.jpg" for i in range(3)),
        "../x.jpg",
        "../../x.jpg",
        "../..",
        *(f"{folder}/x.jpg" for folder in ("one", "two", "deep/one", "deep/two")),
    ]
    paths = [image_sources.map_path(tmp_path, image) for image in images]
    assert len({path.name for path in paths}) == len(images)
    for path in paths:
        assert path.parent == tmp_path and path.suffix == ".png"
        assert (
            len(path.name.encode()) <= 255 and path.name[0] not in ".-" and path.name.isprintable()
        )
        path.touch()
    assert "deep_one_x.jpg" not in paths[-2].name and "one_x.jpg" in paths[-2].name
    assert paths[0] == image_sources.map_path(tmp_path, "./a b.jpg")
    assert paths[2] == image_sources.map_path(tmp_path, "c/../a/b.jpg")
    assert paths[-7].name.startswith(f"{Path.cwd().parent.name}_x.jpg-")
    assert paths[0] == image_sources.map_path(tmp_path, os.path.abspath("a b.jpg"))  # noqa: PTH100


def test_every_source_without_images_is_named(photos):
    (photos / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_images(
            ["photos", "nosuch.jpg", "photos/*.bmp", "photos/empty", "x" * 300 + ".jpg", "-"]
        )
    assert str(caught.value) == (
        "nosuch.jpg: no such file or folder; photos/*.bmp: no images match this pattern; "
        f"photos/empty: no images in this folder; {'x' * 300}.jpg: File name too long"
    )
    assert find_images(["-"]) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_left_for_the_output_to_report(photos):
    (photos / "sub").chmod(0)
    try:
        assert find_images(["photos"]) == [*BELOW[:2], "photos/sub"]
    finally:
        (photos / "sub").chmod(0o755)


def test_an_image_named_twice_comes_once(photos):
    done = {image_sources.canonical_path("photos/sub/c.gif")}
    named = [
        "photos/a.png",
        None,
        "./photos//a.png",
        str(photos / "a.png"),
        "photos/sub/c.gif",
        "photos/b.JPG",
    ]
    assert list(without_repeats(named, done)) == ["photos/a.png", None, "photos/b.JPG"]


def test_paths_come_as_they_are_written_however_they_are_torn():
    reading, writing = os.pipe()
    os.write(writing, b"one.jpg\r\n\ntwo\xff and ,\n")
    os.write(writing, b"three")
    paths = paths_from(reading)
    assert [next(paths), next(paths), next(paths)] == [
        "one.jpg",
        os.fsdecode(b"two\xff and ,"),
        None,
    ]
    threading.Thread(
        target=lambda: (time.sleep(0.05), os.write(writing, b".jpg\nfour"), os.close(writing))
    ).start()
    assert [path for path in paths if path] == ["three.jpg", "four"]
    os.close(reading)


def test_what_is_no_list_of_paths_is_refused():
    reading, writing = os.pipe()
    threading.Thread(
        target=lambda: (os.write(writing, b"\xff" * 200_000), os.close(writing))
    ).start()
    with pytest.raises(
        UserError,
        match="standard input: expected a path per line, found a line of over 8192 bytes",
    ):
        list(paths_from(reading))
    while os.read(reading, 1 << 16):  # let the writer end
        pass
    os.close(reading)


@pytest.mark.parametrize("length", [8192, 8193])
def test_a_line_of_at_most_8_kib_is_a_path(length):
    reading, writing = os.pipe()
    os.write(writing, b"a" * length + b"\nb\n")
    os.close(writing)
    if length == 8192:
        assert [path for path in paths_from(reading) if path] == ["a" * 8192, "b"]
    else:
        with pytest.raises(UserError, match="over 8192 bytes"):
            list(paths_from(reading))
    os.close(reading)
