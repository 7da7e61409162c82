"""What the reference leaves out, and that nothing public is missing from it."""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe


class WithoutPostInit(griffe.Extension):
    """`__post_init__` checks arguments; the class docstring says what it raises."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe when a class was read."""
        cls.members.pop("__post_init__", None)


def missing_names(markdown: str, html: str) -> list[str]:
    """Public names of the module that a page is called by, and that it does not show."""
    missing = []
    for module in re.findall(r"^# (softtrunc\.\S+)$", markdown, re.MULTILINE):
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", []):
            home = getattr(getattr(loaded, name), "__module__", module)
            if not any(f'id="{place}.{name}"' in html for place in (module, home)):
                missing.append(f"{module}.{name}")
    return missing
