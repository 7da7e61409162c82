"""Digits in colour, and their colours found again from grey: docs/gallery.md has the picture.

scikit-learn's digits in ink of a random hue on paper of the opposite one. Brightness tells nothing
about the hue, so a grey digit has any, but ink and paper must fit each other over the whole image.

Run: python examples/colors.py RUN FOLDER      # trains for minutes on two cores, then colorizes
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from softtrunc.cli import main


def paint(seed: int = 0) -> np.ndarray:
    """The digits in colour, uint8 (N, 8, 8, 3)."""
    ink = load_digits().images[..., None] / 16.0
    hue = np.random.default_rng(seed).uniform(0.0, 2.0 * np.pi, (len(ink), 1, 1, 1))
    wheel = np.cos(hue + 2.0 * np.pi / 3.0 * np.arange(3))  # sums to 0: the mean is hue-free
    dark, bright = 50.0 - 45.0 * wheel, 140.0 + 110.0 * wheel
    pixels: np.ndarray = (dark + (bright - dark) * ink).round().astype(np.uint8)
    return pixels


def run(*words: str) -> None:
    print("softtrunc " + " ".join(words), flush=True)
    if main(list(words)) != 0:
        sys.exit(1)


def show(folder: str, pictures: Path) -> None:
    """Train where there is no run yet, then draw the picture."""
    pixels = paint()
    data = Path(folder).with_suffix(".npz")
    data.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(data, x_train=pixels[:1437], x_test=pixels[1437:])
    if not Path(folder).exists():
        settings = (f"data.source={data}", "evaluation.features=null", "training.steps=6000")
        run("train", "digits-vp-fid-st", "--out", folder, *(f"--set={s}" for s in settings))
    out = pictures / "gallery-colors.png"
    options = ("-n", "6", "--sampler", "pc", "--steps", "500")
    run("edit", "colorize", folder, *options, "--out", str(out))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("write: python examples/colors.py RUN FOLDER")
    show(sys.argv[1], Path(sys.argv[2]))
