"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value in a text.

    Raises:
        ValueError: if it is no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value in a file.

    Raises:
        FileNotFoundError: if there is no such file; pipes and devices, which may never end, are
            none.
        ValueError: as `parse_json`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return parse_json(path.read_bytes())
