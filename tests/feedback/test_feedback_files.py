"""A place to write is absent, empty or ours; anything else is named and left alone."""

from __future__ import annotations

import pytest

from softtrunc.feedback.errors import UserError
from softtrunc.feedback.files import check_place


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
