"""Text from files and names, as it may safely stand on a terminal."""

from __future__ import annotations

import re

_LONGEST_LINE = 280

# All that moves the cursor, colours, rings or turns the direction of writing; not the line's end.
_CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with control characters, and bytes that are not UTF-8, written as escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: Exception, longest: int = 120) -> str:
    """What an error says as one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def hours(seconds: float) -> str:
    """A duration as h:mm:ss, whole seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def shortened(text: str) -> str:
    """The text as one line that can be read at once; of a long one the middle is left out."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_LINE else f"{text[: _LONGEST_LINE - 85]} ... {text[-80:]}"
