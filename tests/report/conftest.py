"""Run folders as training and evaluation write them, filled with made-up but plausible numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

EDGES = np.arange(-5.0, 0.25, 0.5)


@dataclass
class MadeUpRun:
    """What varies between made-up runs; the figures are (value, standard error)."""

    k: float = math.inf
    weighting: str = "likelihood"
    seed: int = 0
    eps: float = 1e-5
    steps: int = 4000
    every: int = 100
    nll_residual: tuple[float, float | None] = (1.8031, 0.0123)
    nll: tuple[float, float | None] = (1.9712, 0.0119)
    nelbo: tuple[float, float | None] = (1.8544, 0.0131)
    distance: tuple[float, float | None] = (3.8127, 0.21)
    parts: tuple[str, ...] = ("recipe", "metrics", "samples", "evaluation")
    protocol: dict[str, Any] = field(default_factory=dict)


def _draw_tau(run: MadeUpRun, rng: np.random.Generator) -> float:
    if math.isinf(run.k):
        return run.eps
    u = rng.random()
    if run.k == 1.0:
        return float(run.eps ** (1.0 - u))
    power = run.k - 1.0
    return float(run.eps / (1.0 - u * (1.0 - run.eps**power)) ** (1.0 / power))


def _recipe(run: MadeUpRun, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "data": {"source": "digits", "flip": False},
        "sde": {"kind": "vp", "beta_min": 0.1, "beta_max": 20.0},
        "truncation": {"k": run.k, "eps": run.eps, "tau_max": 1.0},
        "objective": {"weighting": run.weighting, "times": "importance"},
        "network": {"preset": "tiny", "channels": 32},
        "training": {"steps": run.steps, "batch_size": 128, "learning_rate": 2e-4},
        "sampling": {"sampler": "heun", "steps": 18},
        "evaluation": {"samples": 2000},
        "provenance": {
            "versions": {"softtrunc": "0.1.0", "torch": "2.6.0", "python": "3.11.9"},
            "data": {
                "fingerprint": "sha256:6f1d0c5a",
                "name": "digits",
                "count": 1437,
                "channels": 1,
                "height": 8,
                "width": 8,
                "levels": 17,
            },
        },
    }


def _metrics(run: MadeUpRun) -> list[dict[str, Any]]:
    rng = np.random.default_rng(run.seed)
    centres = (EDGES[:-1] + EDGES[1:]) / 2
    lines = []
    for step in range(run.every, run.steps + 1, run.every):
        taus = [_draw_tau(run, rng) for _ in range(run.every)]
        count, loss, error = np.zeros(10, int), np.zeros(10), np.zeros(10)
        learnt = 1.0 + 3.0 * math.exp(-step / 500.0)
        level = learnt * (0.02 + 0.95 / (1.0 + np.exp(2.2 * (centres + 2.2))))
        level[7:] *= 1.35 if math.isinf(run.k) else 1.0
        total = 0.0
        for tau in taus:
            extent = -math.log10(tau)
            z = 11.5 * extent / 5.0 + 0.5
            log_t = np.clip(-extent * rng.random(128), -5.0, 0.0)
            index = np.clip(((log_t + 5.0) * 2).astype(int), 0, 9)
            noisy = level[index] * rng.normal(1.0, 0.15, 128)
            np.add.at(count, index, 1)
            np.add.at(error, index, noisy)
            np.add.at(loss, index, 0.5 * z * noisy)
            total += float((0.5 * z * noisy).mean())
        lines.append(
            {
                "step": step,
                "loss": total / len(taus),
                "tau": taus[-1],
                "taus": taus,
                "grad_norm": 0.8,
                "learning_rate": 2e-4,
                "images_per_second": float(rng.normal(3100.0, 40.0)),
                "seconds": step * 128 / 3100.0,
                "by_log10_t": {
                    "edges": EDGES.tolist(),
                    "loss": [s / n if n else None for s, n in zip(loss, count, strict=True)],
                    "error": [s / n if n else None for s, n in zip(error, count, strict=True)],
                    "count": count.tolist(),
                },
            }
        )
    return lines


def _evaluation(run: MadeUpRun, name: str) -> dict[str, Any]:
    def figure(key: str, title: str, value: tuple[float, float | None], unit: str, nfe: float):
        density = unit == "bits/dim"
        protocol: dict[str, Any] = {"split": "test", "n": 360, "passes": 1, "seed": run.seed}
        if density:
            protocol |= {"dequantization": "uniform", "eps": 1e-5, "rtol": 1e-5, "atol": 1e-5}
        else:
            protocol |= {"n": 2000, "sampler": "heun", "steps": 18, "reference": "train"}
        return {
            "key": key,
            "name": title,
            "value": value[0],
            "standard_error": value[1],
            "unit": unit,
            "better": "lower",
            "seconds": 12.1,
            "nfe": {"mean": nfe, "max": nfe + 19},
            "protocol": protocol | run.protocol,
        }

    return {
        "run": name,
        "step": run.steps,
        "weights": "ema",
        "created": "2026-01-01T00:00:00Z",
        "versions": {"softtrunc": "0.1.0", "torch": "2.6.0"},
        "data": {
            "name": "digits",
            "split": "test",
            "n": 360,
            "levels": 17,
            "value_range": [-1, 1],
            "fingerprint": "sha256:91ab77e0",
        },
        "figures": [
            figure("nll_residual", "NLL with residual", run.nll_residual, "bits/dim", 52.0),
            figure("nll", "NLL without residual", run.nll, "bits/dim", 61.5),
            figure("nelbo", "NELBO", run.nelbo, "bits/dim", 100.0),
            figure("frechet_distance", "FD(digits-mlp)", run.distance, "", 35.0),
        ],
        "training": {
            "seconds": 165.2,
            "images_per_second": 3100.0,
            "parameters": 240_193,
            "steps": run.steps,
            "batch_size": 128,
        },
    }


def _grid(path: Path, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    digits = load_digits().images[rng.integers(0, 1797, 64)] / 16.0
    digits = np.clip(digits + noise * rng.normal(size=digits.shape), 0.0, 1.0)
    tiles = np.pad(digits, ((0, 0), (1, 1), (1, 1)))
    pixels = tiles.reshape(8, 8, 10, 10).transpose(0, 2, 1, 3).reshape(80, 80)
    Image.fromarray((255 * pixels).astype(np.uint8)).save(path)


def make_run(path: Path, run: MadeUpRun | None = None) -> Path:
    """Write the folder and return it."""
    run = run or MadeUpRun()
    path.mkdir(parents=True)
    if "recipe" in run.parts:
        (path / "recipe.yaml").write_text(yaml.safe_dump(_recipe(run, path.name)))
    if "metrics" in run.parts:
        text = "".join(json.dumps(line) + "\n" for line in _metrics(run))
        (path / "metrics.jsonl").write_text(text)
    if "samples" in run.parts:
        folder = path / "samples"
        folder.mkdir()
        for step in range(1000, run.steps + 1, 500):
            _grid(folder / f"step-{step:08d}.png", 600 / step, 1)
        _grid(folder / "data.png", 0.0, 7)
        if "evaluation" in run.parts:
            _grid(folder / "final.png", 0.1, 2 + run.seed)
    if "evaluation" in run.parts:
        (path / "evaluation.json").write_text(json.dumps(_evaluation(run, path.name)))
    return path


SOFT = MadeUpRun(
    k=1.0,
    seed=1,
    nll_residual=(1.8452, 0.0121),
    nll=(1.9954, 0.0118),
    nelbo=(1.8813, 0.0127),
    distance=(2.7119, 0.18),
)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """`run_folder(name, **fields of MadeUpRun)` writes a run folder below `tmp_path / "runs"`."""

    def write(name: str, **fields: Any) -> Path:
        return make_run(tmp_path / "runs" / name, MadeUpRun(**({"steps": 1000} | fields)))

    return write


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A hard and a soft run of full length; tests must not write into them."""
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "hard"), make_run(folder / "soft", SOFT)
