"""README and docs as a test sees them: blocks of code, commands in the text, and links.

A block of Python is compiled and its imports are resolved; every command is held against the
command line. A comment on the line before a block says more:

- `<!-- run -->`: the block is also run, Python in a namespace of stand-ins, commands one by one.
- `<!-- output -->`: the block is what a program prints, or a file; nothing is checked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(
    r"^(?:<!-- (?P<marker>\w+) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`((?:softtrunc|accelerate|make|pip) [^`]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A block of code: where it stands, its language, its marker and its text."""

    place: str
    language: str
    marker: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a block of the shell, as words."""
        if self.language not in ("", "sh", "bash") or self.marker == "output":
            return []
        return [words for line in _lines(self.text) for words in split_command(line)]


def name(page: Path) -> str:
    """The page's place in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Every block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            f"{name(page)}:{text.count(chr(10), 0, found.start()) + 1}",
            found["language"],
            found["marker"] or "",
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
    ]


def inline_commands(page: Path) -> list[list[str]]:
    """The commands that stand within sentences and tables."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = (" ".join(each.split()).replace("\\|", "|") for each in _INLINE.findall(text))
    return [words for line in found for words in split_command(line)]


def links(page: Path) -> list[str]:
    """Where a page points to within the repository."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [first or second for first, second in _LINK.findall(text)]
    return [each for each in targets if not re.match(r"[a-z]+:", each)]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as links give them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def split_command(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without comments and what is set in front of it."""
    words = shlex.split(line, comments=True)
    command: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", ";", "||"):
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command.pop(0)
            if command:
                yield command
            command = []
        else:
            command.append(word)


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
