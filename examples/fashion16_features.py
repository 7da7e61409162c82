"""Train the feature extractor `fashion16-cnn`: a small classifier of 16x16 Fashion-MNIST.

`python examples/fashion16_features.py PREPARED OUT.pt` reads what `softtrunc data prepare
fashion-mnist --size 16 --channels 1 --out PREPARED` wrote, trains for two minutes on two cores with
fixed seeds, prints the accuracy on the held-out images, and writes a TorchScript file for
`--set evaluation.features=OUT.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from softtrunc.data import open_dataset


class Fashion16CNN(nn.Module):
    """Three convolutions, 64 features, ten classes; images in [0, 255]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(64, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img[:, :1].float() / 127.5 - 1.0
        features = self.features(x)
        if return_features:
            return features
        return self.head(features)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        guesses = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return float((guesses == labels).float().mean())


def main(prepared: str, out: str) -> None:
    torch.manual_seed(0)
    split = {name: open_dataset(prepared, name) for name in ("train", "test")}
    images = {n: torch.from_numpy(d.images.copy()) for n, d in split.items()}
    labels = {n: torch.from_numpy(d.labels.copy()).long() for n, d in split.items()}
    network = Fashion16CNN()
    epochs, batch = 12, 128
    steps = epochs * (len(images["train"]) // batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images["train"]))
        for index in order[: len(order) // batch * batch].split(batch):
            loss = nn.functional.cross_entropy(
                network(images["train"][index]), labels["train"][index]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}: {accuracy(network, images['test'], labels['test']):.4f}",
            flush=True,
        )
    torch.jit.script(network.eval()).save(str(Path(out)))


if __name__ == "__main__":
    main(*sys.argv[1:])
