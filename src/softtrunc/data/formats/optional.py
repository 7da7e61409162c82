"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any


def import_for(what: str, module: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        ModuleNotFoundError: if it is not installed, saying what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"{what} need the package {package}: pip install 'softtrunc[{extra}]'"
        ) from error
