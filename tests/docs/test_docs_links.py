"""Links of README and docs lead somewhere, and so do the pages that the code names."""

from __future__ import annotations

import re

import pytest
from documents import PAGES, ROOT, anchors, links, name

# Headings that are made when the site is built; mkdocs checks the links to these.
GENERATED = {"docs/reference/commands.md", "docs/reference/recipe.md"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        checked = anchor and name(target) not in GENERATED and target.suffix == ".md"
        if not target.exists() or (checked and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_pages_that_the_code_names_exist():
    folders = (ROOT / name for name in ("src", "examples", "benchmarks"))
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), page)
        for path in sources
        for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert named
    assert [each for each in named if not (ROOT / each[1]).is_file()] == []
