"""Likelihood as an outlier score, and why raw likelihood fails at it.

A small model is trained on Fashion-MNIST; then held-out clothes and handwritten digits are scored
by their bits per dimension. Digits are simpler than clothes and get *fewer* bits, although the
model never saw one (Nalisnick et al. 2019, arXiv 1810.09136). Subtracting the bits that a lossless
compressor needs corrects for complexity (Serra et al. 2020, arXiv 1909.11480).

Run: python examples/ood.py [FOLDER OF FASHION-MNIST]      # the IDX files; minutes on two cores
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from softtrunc.density import dequantize, nelbo
from softtrunc.jobs.train import train
from softtrunc.recipes import load_recipe
from softtrunc.recipes.build import build_data
from softtrunc.runs.open_run import open_run

FASHION = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist


def digit_images(count: int) -> torch.Tensor:
    """scikit-learn's digits made like MNIST's, 20x20 on black: uint8 (N, 1, 28, 28)."""
    pictures = []
    for digit in load_digits().images[:count]:
        small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))
        large = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC), dtype=np.float64)
        strokes = np.clip(3.0 * (large - 90.0), 0.0, 255.0).astype(np.uint8)
        pictures.append(np.pad(strokes, 4))
    return torch.from_numpy(np.stack(pictures))[:, None]


def bits_per_dim(model: torch.nn.Module, images: torch.Tensor, draws: int) -> np.ndarray:
    """NELBO of each image: the cheap bound is enough to rank images."""
    x = dequantize(images, 256, model.value_range, seeds=range(len(images)))
    bound = nelbo(model, x, draws=draws, seeds=range(len(images)), chunk_size=64)
    return bound.bits_per_dim(256, model.value_range).numpy()


def compressed_bits(images: torch.Tensor) -> np.ndarray:
    """Bits per dimension of each image as PNG: a measure of complexity that knows no data set."""

    def size(pixels: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG", optimize=True)
        return len(file.getvalue())

    return np.array([8 * size(image[0].numpy()) / image[0].numel() for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default=FASHION, help="folder of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/ood"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=200, help="of each kind")
    parser.add_argument("--draws", type=int, default=16, help="times per image in the bound")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        parser.error(f"{options.data}: no such folder: give the IDX files of Fashion-MNIST")

    changes = {
        "data.source": options.data,
        "truncation.k": 1,
        "objective.expected": "false",
        "network.preset": "tiny",
        "training.steps": options.steps,
        "training.batch_size": 64,
        "training.learning_rate": 0.002,
        "training.warmup_steps": 50,
        "training.ema_rate": 0.99,
        "training.sample_every": "null",
    }
    recipe = load_recipe("fashion-mnist", [f"{key}={value}" for key, value in changes.items()])
    train(recipe, options.out, resume=options.out.exists())
    model = open_run(options.out).model

    clothes = build_data(recipe, "test").batch(torch.arange(options.images))
    digits = digit_images(options.images)
    kinds = {"clothes (held out)": clothes, "digits (outliers)": digits}
    bits = {kind: bits_per_dim(model, images, options.draws) for kind, images in kinds.items()}
    png = {kind: compressed_bits(images) for kind, images in kinds.items()}
    print(f"{'':20s} {'bits/dim':>9s} {'PNG bits/dim':>13s}")
    for kind in kinds:
        print(f"{kind:20s} {bits[kind].mean():9.3f} {png[kind].mean():13.3f}")

    outlier = np.repeat([0, 1], options.images)
    raw = np.concatenate(list(bits.values()))
    corrected = raw - np.concatenate(list(png.values()))
    print("AUROC of telling outliers, 0.5 is chance:")
    print(f"  raw bits/dim           {roc_auc_score(outlier, raw):.3f}")
    print(f"  bits/dim minus PNG's   {roc_auc_score(outlier, corrected):.3f}")


if __name__ == "__main__":
    main()
