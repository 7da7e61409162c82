"""The templates of the report's pages, which lie beside this file."""

from __future__ import annotations

from typing import Any


def render(name: str, **values: Any) -> str:
    """A page; what a template asks for and is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("softtrunc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
