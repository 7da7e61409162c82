"""The pictures of the docs are drawn from committed records, by a committed script."""

from __future__ import annotations

from documents import ROOT
from pictures import PICTURES, draw
from PIL import Image


def test_every_picture_is_drawn_from_the_records(tmp_path):
    draw(tmp_path)
    for name in PICTURES:
        drawn, shown = (Image.open(each / name) for each in (tmp_path, ROOT / "docs" / "images"))
        assert drawn.size == shown.size
        assert len(drawn.convert("L").getcolors()) > 20
