import os
import time

import pytest

from hyperiqa.base.errors import UserError
from hyperiqa.base.files import write_whole


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
