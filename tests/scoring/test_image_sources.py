import io
import itertools
import os
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from hyperiqa.base.errors import UserError
from hyperiqa.scoring import image_sources
from hyperiqa.scoring.image_sources import (
    check_lists,
    find_images,
    images_in,
    paths_from,
    shared_out,
    with_numbers,
    without_repeats,
)


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


# Shards and lists


def tar_of(path, members, mode="w"):
    """A tar file of (name, bytes) or (TarInfo, None)."""
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = len(data or b"")
            archive.addfile(header, io.BytesIO(data or b""))
    return path


def read_store(path, column="image"):
    """What a store gives, as (name, bytes, problem), and the pictures that were passed over."""
    passed = []
    images = [
        (str(image), getattr(image, "data", None), getattr(image, "problem", None))
        for image in images_in(str(path), column, passed)
    ]
    return images, passed


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{1..2}/{0..1}.tar", ["1/0.tar", "1/1.tar", "2/0.tar", "2/1.tar"]),
        ("a-{3..2}.tar", ["a-{3..2}.tar"]),
        ("a-{x..z}.tar", ["a-{x..z}.tar"]),
    ],
)
def test_numbers_in_braces_are_written_out(source, names):
    assert with_numbers(source) == names


def test_stores_are_found_where_they_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd-{0..1}.tar").touch()
    for name in ("s-00.tar", "s-01.tar", "list.csv", "a.png", "t.tar.gz"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "b.png").touch()
    assert find_images(["s-{00..01}.tar", "list.csv"]) == ["s-00.tar", "s-01.tar", "list.csv"]
    assert find_images(["s-*.tar", "odd-{0..1}.tar"]) == ["s-00.tar", "s-01.tar", "odd-{0..1}.tar"]
    assert find_images(["folder.tar"]) == ["folder.tar/b.png"]
    # A table or an archive beside photographs is no source of its own.
    assert find_images([".", "*"]) == ["a.png", "folder.tar/b.png"] * 2
    with pytest.raises(UserError, match=r"^s-02.tar: no such file or folder; s-03.tar: no such"):
        find_images(["s-{00..03}.tar"])


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_gives_its_images_in_their_order(tmp_path, mode):
    path = tar_of(
        tmp_path / "s.tar",
        [
            ("./b.jpg", b"one"),
            ("b.json", b"{}"),
            ("b.cls", b"3"),
            ("sub/a.PNG", b"two"),
            ("../up/c.webp", b""),
            (".hidden.jpg", b"three"),
            ("sub/._a.png", b"apple"),
            ("raw.heic", b"four"),
        ],
        mode,
    )
    images, passed = read_store(path)
    assert images == [
        (f"{path}/b.jpg", b"one", None),
        (f"{path}/sub/a.PNG", b"two", None),
        (f"{path}/up/c.webp", b"", None),
    ]
    assert passed == [f"{path}/raw.heic"]


def test_what_a_shard_cannot_give_has_a_reason(tmp_path):
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    members = [("a.jpg", b"one"), (link, None), (folder, None), ("a.jpg", b"2")]
    images, _ = read_store(tar_of(tmp_path / "s.tar", members))
    assert [(name.rpartition("/")[2], data, problem) for name, data, problem in images] == [
        ("a.jpg", b"one", None),
        ("link.jpg", b"", "a link or a device; expected a file"),
        ("a.jpg@2048", b"", "an earlier image in this shard has the same name"),
    ]


def damaged(data, kind):
    """A tar file of five members of 512 and 1,024 bytes that is damaged in the third."""
    third = 2 * 1536
    return {
        "header": data[:third] + b"\x7f" * 512 + data[third + 512 :],
        "blank header": data[:third] + bytes(512) + data[third + 512 :],
        "cut in a header": data[: third + 100],
        "cut in an image": data[: third + 700],
        "cut between images": data[:third],
        "nothing": b"",
        "garbage": b"\x7f" * 2000,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("header", 2),
        ("blank header", 2),
        ("cut in a header", 2),
        ("cut in an image", 2),
        ("cut between images", 2),
        ("nothing", 0),
        ("garbage", 0),
    ],
)
def test_a_damaged_shard_gives_what_was_read_and_says_so(tmp_path, kind, read):
    path = tar_of(tmp_path / "s.tar", [(f"{i}.jpg", bytes([i]) * 1024) for i in range(5)])
    path.write_bytes(damaged(path.read_bytes(), kind))
    images, _ = read_store(path)
    assert images[:-1] == [(f"{path}/{i}.jpg", bytes([i]) * 1024, None) for i in range(read)]
    name, _, problem = images[-1]
    assert name == str(path)
    assert problem.startswith(f"cannot be read on after {read} image")


def test_a_shard_without_images_has_a_row(tmp_path):
    path = tar_of(tmp_path / "s.tar", [("a.txt", b"one")])
    assert read_store(path)[0] == [(str(path), b"", "no images in it")]


def test_a_shard_is_read_in_constant_memory(tmp_path):
    path = tar_of(tmp_path / "s.tar", [(f"{i}.jpg", bytes(1 << 20)) for i in range(60)])
    tracemalloc.start()
    assert sum(len(image.data) for image in images_in(str(path), "image", [])) == 60 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20


def test_a_csv_list_names_images_relative_to_its_folder(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,mos\r\na.jpg,1\r\n/abs/b.jpg,2\r\n,3\r\nd\xe9.jpg,4\r\n")
    assert read_store(path)[0] == [
        (str(tmp_path / "a.jpg"), None, None),
        ("/abs/b.jpg", None, None),
        (f"{path}/2", b"", "neither a path nor bytes in this row"),
        (os.fsdecode(bytes(tmp_path) + b"/d\xe9.jpg"), None, None),
    ]
    check_lists([str(path)], "mos")
    with pytest.raises(UserError, match=f"^{path}: no column photo; found image, mos; --image_col"):
        check_lists([str(path)], "photo")
    # What cannot be read gets a row.
    path.write_bytes(b"a\0\x80")
    check_lists([str(path), str(tmp_path / "gone.csv")], "a")


def test_a_parquet_list_has_paths_or_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "list.parquet"
    columns = {
        "image": ["a.jpg", None],
        "data": [b"one", b""],
        "both": [{"bytes": b"two", "path": "x.jpg"}, {"bytes": None, "path": "y.jpg"}],
        "number": [1, 2],
    }
    parquet.write_table(pyarrow.table(columns), path)
    nothing = "neither a path nor bytes in this row"
    first, second = f"{path}/0", f"{path}/1"
    assert read_store(path)[0] == [
        (str(tmp_path / "a.jpg"), None, None),
        (second, b"", nothing),
    ]
    assert read_store(path, "data")[0] == [(first, b"one", None), (second, b"", None)]
    assert read_store(path, "both")[0] == [
        (first, b"two", None),
        (str(tmp_path / "y.jpg"), None, None),
    ]
    assert [problem for _, _, problem in read_store(path, "number")[0]] == [nothing] * 2
    with pytest.raises(UserError, match="no column photo; found image, data, both, number; "):
        check_lists([str(path)], "photo")
    path.write_bytes(path.read_bytes()[:-9])
    check_lists([str(path)], "photo")
    [(name, _, problem)] = read_store(path)[0]
    assert name == str(path) and problem.startswith("cannot be read on after 0 images: ")


@pytest.mark.parametrize("number", [1, 3, 7, 20])
def test_shares_are_disjoint_whole_and_even(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    sources = [f"{i}.jpg" for i in range(8)] + [f"{i}.tar" for i in range(6)]
    shares = [shared_out(sources, f"{i}/{number}") for i in range(number)]
    assert sorted(itertools.chain(*shares)) == sorted(sources)
    for suffix in (".jpg", ".tar"):
        counts = [sum(source.endswith(suffix) for source in share) for share in shares]
        assert max(counts) - min(counts) <= 1
