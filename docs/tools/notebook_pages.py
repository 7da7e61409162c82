"""A notebook as Markdown: its text, its code, and what the code printed and drew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def notebook_page(name: str) -> str:
    """The page of `docs/notebooks/NAME.ipynb`, with a link to the file."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    title, *rest = [part for cell in cells for part in _parts(cell)]
    return "\n\n".join([title, f"[Download this notebook]({name}.ipynb)", *rest]) + "\n"


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        shown = output.get("data", {})
        if "image/png" in shown:
            png = "".join(shown["image/png"]).replace("\n", "")
            yield f'<img alt="what the code draws" src="data:image/png;base64,{png}">'
        else:
            printed = output.get("text") or shown.get("text/plain", "")
            yield f"```\n{''.join(printed).rstrip()}\n```"
