"""Prepared data that were edited, damaged or swapped after they were prepared."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Proof, run, seeded, times

from softtrunc.data import open_prepared

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 3, 64, 64), dtype=np.uint8)


@pytest.fixture
def prepared(hostile: Proof) -> Path:
    """Prepared data, and the same in a safe place."""
    np.savez("a.npz", x_train=IMAGES, x_test=IMAGES[:5], y_train=np.arange(30))
    assert run("data", "prepare", "a.npz", "--out", "safe").code == 0
    return hostile.folder / "p"


def fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree("safe", place)


def test_edits_that_leave_a_trace_of_time(hostile: Proof, prepared):
    draw = seeded(0)
    for _ in range(times(8)):
        fresh(prepared)
        name = draw.choice(["train.npy", "train.npy", "test.npy", "train-labels.npy"])
        content = bytearray((prepared / name).read_bytes())
        at = draw.randrange(len(content))
        content[at] ^= 1 << draw.randrange(8)
        (prepared / name).write_bytes(content)

        def right(_: object) -> None:
            """A flip in the padding of a header changes no pixel."""
            assert np.array_equal(open_prepared(prepared, "train").images, IMAGES)

        hostile.attempt(f"{name} at {at}", "data", "inspect", "p", right=right)


def test_edits_that_leave_none_are_found_by_looking_at_all(hostile: Proof, prepared):
    draw = seeded(1)
    for _ in range(times(5)):
        fresh(prepared)
        file = prepared / "train.npy"
        before, content = file.stat(), bytearray(file.read_bytes())
        at = draw.randrange(128, len(content))
        content[at] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        hostile.attempt(f"pixel {at}", "data", "inspect", "p", "--verify")


def test_arrays_of_others(hostile: Proof, prepared):
    other = np.random.default_rng(9).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    for name, array in {
        "other images": other,
        "the same in another order": IMAGES[::-1],
        "fewer": IMAGES[:-1],
        "floats": IMAGES / 255.0,
        "objects": np.array([{}] * 30, dtype=object),
        "nothing": IMAGES[:0],
        "a number": np.uint8(3),
    }.items():
        fresh(prepared)
        np.save(prepared / "train.npy", array, allow_pickle=True)
        hostile.attempt(name, "data", "inspect", "p")
    for name in ("train.npy", "train-labels.npy"):
        fresh(prepared)
        (prepared / name).unlink()
        hostile.attempt(f"no {name}", "data", "inspect", "p")
        (prepared / name).mkdir()
        hostile.attempt(f"a folder {name}", "data", "inspect", "p")


def test_odd_cards(hostile: Proof, prepared):
    draw = seeded(2)
    odd: list[Any] = [
        None,
        -1,
        0,
        1,
        255,
        10**30,
        1.5,
        "",
        "x" * 9000,
        [],
        {},
        [[1]],
        True,
        "../..",
    ]
    keys = ["format", "sample", "labels", "labels_sha256", "converted", "skipped"]
    inner = ["count", "channels", "height", "width", "levels", "fingerprint", "name", "split"]
    for _ in range(times(8)):
        fresh(prepared)
        card = json.loads((prepared / "train.json").read_text())
        key = draw.choice([*keys, *(("card", name) for name in inner)])
        value = draw.choice(odd)
        if isinstance(key, tuple):
            card["card"][key[1]] = value
        elif draw.random() < 0.2:
            card.pop(key)
        else:
            card[key] = value
        (prepared / "train.json").write_text(json.dumps(card))

        def right(_: object) -> None:
            """What decides no pixel, level or label may say anything."""
            data = open_prepared(prepared, "train", verify=True)
            assert np.array_equal(data.images, IMAGES)
            assert data.card.levels == 256
            assert data.labels is None or np.array_equal(data.labels, np.arange(30))

        hostile.attempt(f"{key}: {str(value)[:20]}", "data", "inspect", "p", right=right)
    for name, text in {
        "empty": b"",
        "deep": b"[" * 99_999,
        "list": b"[]",
        "latin": b"\xff",
    }.items():
        fresh(prepared)
        (prepared / "train.json").write_bytes(text)
        hostile.attempt(name, "data", "inspect", "p")
