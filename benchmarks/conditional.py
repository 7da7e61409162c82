"""Does a conditional model draw the class it is told? By guidance, under a classifier of its own.

A small convolutional classifier is trained on the training images of the run's data, apart from any
feature extractor. The run then draws so many samples of each class at each guidance, and the share
that the classifier takes for that class is printed, with the share of held-out images beside it,
the intra-FID and the distance to all training images.

    python -m benchmarks.conditional RUN [RUN] --guidance 0 1 3 --per-class 100
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from softtrunc.data import ImageDataset
from softtrunc.evaluation.by_class import Labels, intra_distances
from softtrunc.evaluation.features import open_extractor
from softtrunc.feedback.progress import Silent
from softtrunc.metrics import FeatureStatistics
from softtrunc.recipes.build import build_data
from softtrunc.runs.draw import draw
from softtrunc.runs.open_run import open_run


class Classifier(nn.Sequential):
    """Two convolutions and a hidden layer on images of any size."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(1024, 128),
            nn.ReLU(),
            nn.Linear(128, classes),
        )

    @torch.no_grad()
    def told(self, images: Tensor, levels: int) -> Tensor:
        """The class that each image is taken for."""
        self.eval()
        return torch.cat([self(scaled(part, levels)).argmax(1) for part in images.split(500)])


def scaled(images: Tensor, levels: int) -> Tensor:
    return images.float() / (levels - 1) - 0.5


def train_classifier(data: ImageDataset, epochs: int) -> Classifier:
    torch.manual_seed(0)
    net = Classifier(data.card.channels, len(data.card.classes))
    steps = epochs * (len(data) // 128)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(data), (128,))
        logits = net(scaled(data.batch(index), data.card.levels))
        loss = functional.cross_entropy(logits, data.classes_of(index))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--guidance", nargs="+", type=float, default=[0.0, 1.0, 3.0])
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="the figures, as JSON")
    args = parser.parse_args()
    recipe = open_run(args.runs[0]).recipe
    train, test = (build_data(recipe, split) for split in ("train", "test"))
    classes, levels = train.card.classes, train.card.levels
    net = train_classifier(train, args.epochs)
    held_out = test.batch(torch.arange(len(test)))
    right = float((net.told(held_out, levels) == Labels.of(test).numbers).double().mean())
    print(f"held-out images: {right:.4f} of {len(test)}", flush=True)
    extractor = open_extractor(recipe.evaluation.features, recipe.evaluation.resize, train)
    real = torch.cat([extractor(part) for part in train.batch(torch.arange(len(train))).split(500)])
    rows: list[dict[str, object]] = [{"held_out": right}]
    for run in args.runs:
        for guidance in args.guidance:
            opened = open_run(run, overrides=[f"sampling.guidance={guidance}"])
            count = args.per_class * len(classes)
            drawn = draw(opened, count, batch_size=250, progress=Silent()).images
            numbers = torch.arange(count) % len(classes)
            hits = (net.told(drawn, levels) == numbers).double()
            by_class = {c: float(hits[numbers == i].mean()) for i, c in enumerate(classes)}
            features = torch.cat([extractor(part) for part in drawn.split(500)])
            within = intra_distances(features, Labels(numbers, classes), real, Labels.of(train))
            ours, theirs = (FeatureStatistics(features.shape[1]) for _ in range(2))
            ours.update(features)
            theirs.update(real)
            share = float(hits.mean())
            row = {
                "run": run.name,
                "guidance": guidance,
                "accuracy": share,
                "standard_error": math.sqrt(share * (1.0 - share) / count),
                "by_class": by_class,
                "intra_frechet_distance": sum(within.values()) / len(within),
                "frechet_distance": ours.distance(theirs),
            }
            rows.append(row)
            worst = min(by_class, key=by_class.__getitem__)
            print(
                f"{run.name} guidance {guidance:g}: {share:.4f} +- {row['standard_error']:.4f} "
                f"(least {worst} {by_class[worst]:.2f}), "
                f"intra {row['intra_frechet_distance']:.2f}, "
                f"distance {row['frechet_distance']:.2f}",
                flush=True,
            )
            if args.out is not None:
                args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
