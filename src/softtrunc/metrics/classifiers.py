"""Small classifiers that need no download: their last hidden layers as features."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from importlib.resources import files
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load
from torch import Tensor, nn


class _Classifier(ABC):
    """A network of `features` and a `head` on them, by which images become `dim` numbers."""

    dim = 64
    resize = "none"

    def __init__(self, features: nn.Sequential, head: nn.Linear) -> None:
        self._network = nn.ModuleDict({"features": features, "head": head})

    @abstractmethod
    def _inputs(self, images: Tensor) -> Tensor:
        """What the network is given of images."""

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._network["head"](self._network["features"](x))
        return logits

    def _weights_hash(self) -> str:
        digest = hashlib.sha256()
        for parameter in self._network.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images."""
        features: Tensor = self._network.to(images.device)["features"](self._inputs(images))
        return features

    @torch.no_grad()
    def probabilities(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Probabilities of the ten classes."""
        self._network.to(images.device)
        return self._logits(self._inputs(images)).softmax(1)

    def classify(self, images: UInt8[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
        """The class that each image is taken for, int64 (N,)."""
        return self.probabilities(images).argmax(1)

    def describe(self, channels: int) -> str:  # noqa: ARG002
        """Images reach the classifier as they are."""
        return self.resize


class DigitsFeatures(_Classifier):
    """The 64-unit hidden layer of a small classifier of 8x8 digits, trained on the spot.

    A multi-layer perceptron 64-128-64-10 with ReLU, trained for some seconds on the given images
    with its own random numbers: the same images give the same features.

    Args:
        images: uint8 (N, 1, 8, 8) with values 0 ... 16.
        labels: int64 (N,), 0 ... 9.
        epochs: passes over the images.

    Raises:
        ValueError: if images or labels are not of these shapes.
    """

    name = "digits-mlp"
    full_range = False

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, epochs: int = 60) -> None:
        if images.shape[1:] != (1, 8, 8) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"DigitsFeatures: images {images.shape}, labels {labels.shape}: need (N, 1, 8, 8) "
                "and (N,)"
            )
        generator = torch.Generator().manual_seed(0)
        linear = [nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise((64, 128, 64, 10))]
        for layer in linear:
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        super().__init__(nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU()), linear[2])
        x, y = self._inputs(torch.from_numpy(images)), torch.from_numpy(labels)
        optimizer = torch.optim.Adam(self._network.parameters(), lr=2e-3, weight_decay=1e-4)
        for _ in range(epochs):
            for index in torch.randperm(len(x), generator=generator).split(64):
                loss = nn.functional.cross_entropy(self._logits(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.hash = self._weights_hash()

    def _inputs(self, images: Tensor) -> Tensor:
        return images.float().flatten(1) / 16.0


class Fashion16Features(_Classifier):
    """The 64-unit hidden layer of a convolutional classifier of Fashion-MNIST at 16x16.

    Trained by `examples/fashion16_features.py`; the weights come with the package. 88.8 % of the
    10,000 test images are told right. Images are uint8 (N, C, 16, 16) with values 0 ... 255, of
    which the first channel counts; others raise a ValueError.
    """

    name = "fashion16-cnn"
    full_range = True

    def __init__(self) -> None:
        def block(channels: int, out: int) -> tuple[nn.Module, nn.Module]:
            return nn.utils.skip_init(nn.Conv2d, channels, out, 3, padding=1), nn.ReLU()

        features = nn.Sequential(
            *(*block(1, 32), nn.MaxPool2d(2)),
            *(*block(32, 64), nn.MaxPool2d(2)),
            *(*block(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.utils.skip_init(nn.Linear, 64, 64), nn.ReLU()),
        )
        super().__init__(features, nn.utils.skip_init(nn.Linear, 64, 10))
        weights = files("softtrunc.metrics").joinpath("fashion16_cnn.safetensors")
        self._network.load_state_dict(load(weights.read_bytes()))
        self.hash = self._weights_hash()

    def _inputs(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if (height, width) != (16, 16):
            raise ValueError(
                f"{self.name}: images of {height}x{width}: it knows 16x16 alone: prepare the data "
                "with --size 16, or take another extractor"
            )
        return images[:, :1].float() / 127.5 - 1.0
