"""What mkdocs is told beside its settings: pages made from the code, and formulas as MathML."""

from __future__ import annotations

import re
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

from commands import command_pages
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page
from notebook_pages import notebook_page
from recipe_keys import recipe_tables
from reference import missing_names

_GENERATED = {
    "commands": command_pages,
    "recipe keys": recipe_tables,
    "notebook own-loop": partial(notebook_page, "own-loop"),
    "notebook anatomy": partial(notebook_page, "anatomy"),
}
_MARKER = re.compile(r"^<!-- generated: ([\w -]+) -->$", re.MULTILINE)
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is generated."""
    return _MARKER.sub(lambda found: _GENERATED[found[1]](), markdown)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Browsers draw MathML themselves: nothing is fetched and no script runs."""
    if missing := missing_names(page.markdown or "", html):
        raise PluginError(f"{page.file.src_uri} lacks {', '.join(missing)}: give it a docstring")
    return _FORMULA.sub(_mathml, html)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """The theme hides the navigation below 1,220 pixels; here it stays down to 1,124."""
    assets = Path(config.site_dir) / "assets"
    changed = 0
    for path in [*assets.rglob("*.min.css"), *assets.rglob("bundle.*.min.js")]:
        text = path.read_text(encoding="utf-8")
        moved = text.replace("76.234375em", "70.234375em").replace("76.25em", "70.25em")
        changed += moved != text
        path.write_text(moved, encoding="utf-8")
    if not changed:
        raise PluginError("the theme has other breakpoints: look where its navigation hides")


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found["tag"] == "div" else "inline"
    mathml = convert(unescape(found["latex"]).strip(), display=display)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml
