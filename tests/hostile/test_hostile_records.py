"""What a run folder says of its figures and its data, edited or damaged."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Proof, run, seeded, times

sys.path.append(str(Path(__file__).parents[1] / "interop"))
from public_network import checkpoint, configuration

ODD: list[Any] = [
    None, True, -1, 0, 1e308, -(10**30), math.nan, math.inf, "", "x" * 5000, [], {}, [[{}]],
    {"a": {"b": [1]}}, "\x1b[31m", "../..", "[bold]", [None] * 5,
]  # fmt: skip


def figure(key: str, **protocol: Any) -> dict[str, Any]:
    return {
        "key": key,
        "name": "a figure",
        "value": 3.5,
        "standard_error": 0.1,
        "unit": "bits/dim",
        "better": "lower",
        "seconds": 2.0,
        "protocol": {"split": "test", "n": 9, "eps": 1e-5, "levels": 256, **protocol},
        "data": {"name": "d", "split": "test", "n": 9, "fingerprint": "f", "levels": 256,
                 "value_range": [-1.0, 1.0]},
        "nfe": {"mean": 3.0, "max": 4.0},
    }  # fmt: skip


def content() -> dict[str, Any]:
    keys = ("nll_residual", "nelbo", "frechet_distance")
    return {
        "run": "run",
        "step": 1234,
        "weights": "ema",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"torch": "2"},
        "training": {"seconds": 1.0, "images_per_second": 9.0, "parameters": 5, "steps": 1234,
                     "batch_size": 8},
        "figures": [figure(key, samples=2, reference="d train") for key in keys],
    }  # fmt: skip


@pytest.fixture
def folder(hostile: Proof) -> Path:
    small = {"model.nf": 8, "model.num_res_blocks": 1, "model.ch_mult": [1, 2]}
    Path("c.json").write_text(json.dumps(configuration(small)))
    torch.save(checkpoint(configuration(small))[0], "c.pth")
    assert run("import", "c.pth", "--config", "c.json", "--out", "run").code == 0
    return hostile.folder / "run"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


def test_odd_figures(hostile: Proof, folder):
    draw = seeded(0)
    for _ in range(times(6)):
        changed = content()
        path = draw.choice(places(changed))
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value = draw.choice(ODD)
        (folder / "evaluation.json").write_text(json.dumps(changed))
        what = f"{'.'.join(map(str, path))} = {str(value)[:20]!r}"
        # What makes no figure is left out of the page.
        hostile.attempt(what, "report", "run", "--out", "r.html", right=lambda _: None,
                        writes=["r.html"])  # fmt: skip
    for name, text in {
        "empty": b"", "deep": b"[" * 99_999, "list": b"[1]", "latin": b"\xff", "number": b"3",
        "digits": b'{"step": ' + b"1" * 6000 + b"}",
    }.items():  # fmt: skip
        (folder / "evaluation.json").write_bytes(text)
        hostile.attempt(name, "report", "run", "--out", "r.html", right=lambda _: None,
                        writes=["r.html"])  # fmt: skip


def test_odd_cards_of_the_data(hostile: Proof, folder):
    import yaml

    draw, text = seeded(1), (folder / "recipe.yaml").read_text()
    for _ in range(times(5)):
        recipe = yaml.safe_load(text)
        card = recipe["provenance"]["data"]
        if draw.random() < 0.2:
            key = draw.choice([*recipe["provenance"]])
            recipe["provenance"][key] = value = draw.choice(ODD)
        else:
            key = draw.choice([*card])
            card[key] = value = draw.choice(ODD)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        hostile.attempt(
            f"{key} = {str(value)[:20]!r}",
            "sample", "run", "-n", "2", "--steps", "1", "--sampler", "dpm_solver", "--out", "x.npz",
            right=lambda _: None,
            writes=["x.npz", "x.npz.json"],
            codes=(0, 1, 2),
        )  # fmt: skip
