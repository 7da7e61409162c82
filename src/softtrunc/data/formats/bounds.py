"""How much memory packed data may take: what they promise is looked at before it is allocated."""

from __future__ import annotations

# Whatever it is packed into, so much fits into any memory.
_ALWAYS = 64 << 20
# Sprites on black are packed a hundred times, zeros by deflate a thousand times.
_RATIO = 250


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
