import os
import tempfile
import time
from pathlib import Path

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import can_write, exists_or_on_hub, hub_file, write_whole


def test_what_a_killed_write_left_goes_an_hour_later(tmp_path):
    path = tmp_path / "scores.csv"
    names = (".scores.csv.abcdefgh.tmp", ".scores.csv.ABCDEFGH.tmp", ".scores_csv.abcdefgh.tmp")
    for name in names:
        (tmp_path / name).write_text("part")
    write_whole(path, "new")
    assert all((tmp_path / name).exists() for name in names)
    for name in names:
        os.utime(tmp_path / name, (time.time() - 3601,) * 2)
    write_whole(path, "newer")
    assert [name for name in names if (tmp_path / name).exists()] == list(names[1:])
    assert path.read_text() == "newer"


def test_a_content_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    write_whole(path, "old")

    def fail(file):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="a: cannot be written: No space left on device"):
        write_whole(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# name -> (repository, revision, file) in huggingface_hub's grammar
ON_HUB = {
    "hf://u/n": ("u/n", None, ""),
    "hf:/u/n": ("u/n", None, ""),  # what a Path leaves of it
    "hf://u/n@v1.0": ("u/n", "v1.0", ""),
    "hf://models/u/n@v1/a.pkl": ("u/n", "v1", "a.pkl"),
    "hf://u/n/sub/model.safetensors": ("u/n", None, "sub/model.safetensors"),
    "hf://u/n@main/sub/a@b.pkl": ("u/n", "main", "sub/a@b.pkl"),
    "hf://u/n/a@b.pkl": ("u/n", None, "a@b.pkl"),
    "hf://u/n@refs/pr/1": ("u/n", "refs/pr/1", ""),
    "hf://u/n@refs/pr/12/sub/a.pkl": ("u/n", "refs/pr/12", "sub/a.pkl"),
    "hf://u/n@refs/convert/parquet/a.pkl": ("u/n", "refs/convert/parquet", "a.pkl"),
    "hf://u/n@refs%2Fpr%2F1": ("u/n", "refs/pr/1", ""),
    "hf://u/n@new%2Fidea/a.pkl": ("u/n", "new/idea", "a.pkl"),
    "https://huggingface.co/u/n": ("u/n", None, ""),
    "https:/huggingface.co/u/n/": ("u/n", None, ""),
    "https://hf.co/models/u/n?library=x#files": ("u/n", None, ""),
    "https://huggingface.co/u/n/tree/main": ("u/n", "main", ""),
    "https://huggingface.co/u/n/tree/refs%2Fpr%2F1": ("u/n", "refs/pr/1", ""),
    "https://huggingface.co/u/n/tree/refs/pr/1": ("u/n", "refs/pr/1", ""),
    "https://huggingface.co/u/n/tree/main/sub": ("u/n", "main", "sub"),
    "https://huggingface.co/u/n/blob/main/my%20model.pkl": ("u/n", "main", "my model.pkl"),
    "http://huggingface.co/u/n/resolve/v1/s/m.pkl?download=true": ("u/n", "v1", "s/m.pkl"),
}


@pytest.mark.parametrize("name", ON_HUB)
def test_names_on_the_hub(name):
    assert hub_file(Path(name)) == ON_HUB[name] and exists_or_on_hub(Path(name))
    parse = getattr(pytest.importorskip("huggingface_hub"), "parse_hf_uri", None)
    if parse and not name.startswith(("hf:/u", "https:/h")):
        parsed = parse(name)
        assert (parsed.id, parsed.revision, parsed.path_in_repo) == ON_HUB[name]
        assert parsed.type == "model"


@pytest.mark.parametrize(
    "name",
    [
        "hf://u",
        "hf://models/u",
        "hf://u/my model",
        "hf://u/n@",
        "hf://u/n@refs/pr/1x",
        "hf://datasets/u/n",
        "hf://spaces/u/n/app.py",
        "hf://../..",
        "hf://%2e%2e/n",
        "hf://u/n/../../../etc/passwd",
        "hf://u/n@../x.pkl",
        "hf://u/n@..%2F..%2Fx",
        "hf://u/n@%2Fetc",
        "https://huggingface.co/u",
        "https://huggingface.co/datasets/u/n",
        "https://huggingface.co/u/n/discussions/1",
        "https://huggingface.co/u/n/blob/main/%2e%2e/x.pkl",
        "https://example.com/u/n",
        "https://[x/u/n",
    ],
)
def test_names_that_are_none_on_the_hub_are_said_in_one_line(name):
    with pytest.raises(UserError, match=r": expected (hf://USER/NAME|a path without \.\.)") as said:
        hub_file(Path(name))
    assert "\n" not in str(said.value) and str(said.value).startswith(name[:6])


def test_paths_of_this_machine_are_none_on_the_hub(tmp_path):
    for name in ("m.pkl", "hf", "u/n", str(tmp_path), "C:/m.pkl", "https", "models/u/n@v1"):
        assert hub_file(Path(name)) is None
    assert exists_or_on_hub(tmp_path) and not exists_or_on_hub(tmp_path / "none")


def test_addresses_of_the_hub_that_is_set_are_understood(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:8000")
    assert hub_file(Path("http://localhost:8000/u/n/blob/main/a.pkl")) == ("u/n", "main", "a.pkl")


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o555)
    expected = {
        tmp_path / "new": True,
        tmp_path / "new/below": True,
        tmp_path / "file": True,
        tmp_path / "file/below": False,
        tmp_path / "closed/new": False,
        tmp_path / "closed/new/below": False,
    }
    with tempfile.TemporaryFile("w+") as results:
        child = os.fork()
        if child == 0:
            try:
                os.chdir(tmp_path)
                # Permissions do not bind the superuser.
                if os.getuid() == 0:
                    for path in (tmp_path, tmp_path / "file"):
                        os.chown(path, 65534, -1)
                    os.setuid(65534)
                results.write(repr([can_write(path.relative_to(tmp_path)) for path in expected]))
                results.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        results.seek(0)
        assert results.read() == repr(list(expected.values()))
