"""Arrays that lie, are cut short, or are no images."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from harness import Outcome, Proof, times

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)


def npy(array: np.ndarray = IMAGES) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_flipped_bits_of_a_header(hostile: Proof):
    draw, plain = random.Random(0), npy()
    for _ in range(times(150)):
        bit = draw.randrange(128 * 8)
        content = bytearray(plain)
        content[bit // 8] ^= 1 << bit % 8
        Path("a.npy").write_bytes(content)

        def right(outcome: Outcome) -> None:
            assert "24" in outcome.out

        hostile.attempt(f"bit {bit}", "data", "inspect", "a.npy", right=right)
