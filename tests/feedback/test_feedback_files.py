"""Places to write, and folders that appear whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from softtrunc.feedback.errors import UserError, user_errors
from softtrunc.feedback.files import (
    check_named,
    check_place,
    whole_file,
    whole_folder,
    write_text,
)


def test_a_place_is_absent_empty_or_ours(tmp_path):
    check_place(tmp_path / "nothing")
    check_place(tmp_path)
    (tmp_path / ".half.partial").write_text("")
    check_place(tmp_path)
    (tmp_path / "page.html").write_text("")
    check_place(tmp_path, lambda path: path.suffix == ".html")
    with pytest.raises(UserError, match=r"exists and is not empty: it holds 'page\.html'"):
        check_place(tmp_path)
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"it holds 'thesis\.txt', which no page is: choose"):
        check_place(tmp_path, lambda path: path.suffix == ".html", ", which no page is")
    with pytest.raises(UserError, match="it is a file"):
        check_place(tmp_path / "thesis.txt", lambda _: True)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "new" / "folder"
    final.mkdir(parents=True)  # an empty one is no hindrance
    with whole_folder(final) as partial:
        (partial / "a").write_text("1")
        assert not any(final.iterdir())
    assert (final / "a").read_text() == "1"
    other = tmp_path / "new" / "other"
    with pytest.raises(FileNotFoundError), whole_folder(other) as partial:
        (partial / "missing" / "a").write_text("1")
    assert [path.name for path in final.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINVAL])
def test_what_the_disk_lost_is_told_and_what_it_cannot_do_is_not(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:  # a file system that knows no fsync
        write_text(tmp_path / "a", "1")
        assert (tmp_path / "a").read_text() == "1"
    else:
        with pytest.raises(OSError, match="partial") as caught:
            write_text(tmp_path / "a", "1")
        assert caught.value.errno == number
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
@pytest.mark.parametrize(
    "error",
    [
        OSError("32000 requested and 24448 written"),  # all that NumPy says
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),  # as a file is closed
    ],
)
def test_whoever_finds_the_disk_full_the_place_is_named(tmp_path, whole, error):
    with pytest.raises(OSError, match="No space left") as caught, whole(tmp_path / "a"):
        raise error
    assert caught.value.filename == str(tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_is_no_mistake_of_a_user():
    with pytest.raises(OSError, match="No space left"), user_errors("--out a"):
        raise OSError(errno.ENOSPC, "No space left on device", "a")
    with pytest.raises(UserError, match=r"--out a: .*Permission denied"), user_errors("--out a"):
        raise OSError(errno.EACCES, "Permission denied", "a")


def test_a_place_whose_weights_could_not_be_read_is_refused():
    with pytest.raises(UserError, match="not UTF-8"):
        check_named(Path("runs", os.fsdecode(b"n\xff"), "one"))
    check_named(Path("runs", "größer"))
