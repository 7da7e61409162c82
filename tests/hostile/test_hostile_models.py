"""Saved models, of this library and of diffusers, with odd values in what describes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import Proof, run, seeded, times
from test_hostile_records import ODD, places
from world import RECIPE, SHORT, sets

VALUES: list[Any] = [*ODD, 1, 2, 3, 0.5, 10**12, 10**400, "linear", [1], [0.5, 0.5], ["epsilon"]]


def attempt(proof: Proof, file: Path, command: list[str], count: int) -> None:
    """Run a command with one value of a JSON file changed, `count` times."""
    draw, plain = seeded(file.name), file.read_text()
    for _ in range(times(count)):
        changed = json.loads(plain)
        path = draw.choice(places(changed))
        inner: Any = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value = draw.choice(VALUES)
        file.write_text(json.dumps(changed))
        what = f"{file}: {'.'.join(map(str, path))} = {str(value)[:20]!r}"
        # What decides nothing of the model may say anything.
        proof.attempt(what, *command, right=lambda _: None, writes=["made"], codes=(0, 1, 2))
    file.write_text(plain)


def test_pipelines(inhabited: Proof):
    pytest.importorskip("diffusers", reason="diffusers is an extra: softtrunc[hub]")
    from pipelines import pipeline

    pipeline(beta_schedule="linear").save_pretrained("pipe")
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        attempt(inhabited, Path("pipe", name), ["import", "pipe", "--out", "made"], 2)


def test_exports(inhabited: Proof):
    assert run("export", "run", "--out", "exported").code == 0
    command = ["train", RECIPE, *sets(*SHORT), "--init-from", "exported", "--out", "made"]
    attempt(inhabited, Path("exported/config.json"), command, 3)


def test_classes(inhabited: Proof):
    labelled = sets(*SHORT, "data.labels=true")
    assert run("train", RECIPE, *labelled, "--out", "labelled").code == 0
    draw = seeded("classes")
    for number in range(times(3)):
        value = draw.choice(VALUES)
        option = ["--class", "--guidance", "--set"][number % 3]
        said = f"sampling.guidance_interval={json.dumps(value)}" if option == "--set" else value
        inhabited.attempt(
            f"{option} {str(value)[:20]!r}",
            *("sample", "labelled", "-n", "2", "--sampler", "dpm_solver", "--steps", "1"),
            *("--out", "drawn.npz", option, said),
            right=lambda _: None,
            writes=["drawn.npz", "drawn.npz.json"],
        )
    shutil.rmtree("labelled")
