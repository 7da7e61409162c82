"""Places to write, and folders that appear whole."""

from __future__ import annotations

import pytest

from softtrunc.feedback.errors import UserError
from softtrunc.feedback.files import check_place, whole_folder


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
