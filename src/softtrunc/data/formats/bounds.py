"""What packed data may do: how much memory they take, and how they fail."""

from __future__ import annotations

import tarfile
import zipfile
import zlib

try:
    from lzma import LZMAError
except ImportError:  # Python may be built without it
    LZMAError = EOFError  # type: ignore[misc,assignment]

# Whatever it is packed into, so much fits into any memory.
_ALWAYS = 64 << 20
# Sprites on black are packed a hundred times, zeros by deflate a thousand times.
_RATIO = 250

# RuntimeError: encrypted, or an unknown version or compression; ValueError: names and places.
BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError),
    *(RuntimeError, ValueError),
)
BROKEN_TAR = (tarfile.TarError, zlib.error, LZMAError, EOFError, OSError)


def refuse_bomb(where: object, packed: int, unpacked: int, ratio: int = _RATIO) -> None:
    """Refuse what unpacks to far more bytes than images do.

    Raises:
        ValueError: naming the bound.
    """
    if unpacked >= max(_ALWAYS, ratio * packed):
        raise ValueError(
            f"{where}: unpacks to {unpacked:,} bytes, over {ratio:,} times its size: refused as a "
            "decompression bomb"
        )
