"""What a distance between image sets is measured in, and what it may then be called."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

__all__ = ["DigitsFeatures", "FeatureExtractor", "TorchScriptFeatures", "distance_name"]

INCEPTION_FILE = "inception-2015-12-05.pt"
_INCEPTION_DIM = 2048
_FULL_FID = 50_000


class FeatureExtractor(Protocol):
    """Images in, feature vectors out.

    - `name`: stands in the name of the distance. `hash`: of what decides the features.
    - `dim`: number of features.
    - `full_range`: whether images are wanted with values 0 ... 255, or in their own grey levels.
    """

    name: str
    hash: str
    dim: int
    full_range: bool

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of a batch."""


def distance_name(extractor: FeatureExtractor, samples: int) -> str:
    """ "FID" over Inception with at least 50,000 samples, "FID@10k" with fewer; else "FD(name)"."""
    if extractor.name != "inception-2015-12-05":
        return f"FD({extractor.name})"
    if samples >= _FULL_FID:
        return "FID"
    return f"FID@{samples // 1000}k" if samples % 1000 == 0 else f"FID@{samples}"


class TorchScriptFeatures:
    """Pooled features of a TorchScript network `forward(img_uint8, return_features=True)`.

    Grey images are given as three equal channels. A file named `inception-2015-12-05.pt` with
    2,048 features counts as the standard Inception network; anything else goes by its file name.

    Args:
        path: the TorchScript file.

    Raises:
        ValueError: if the file is not TorchScript or does not take images this way.
    """

    full_range = True

    def __init__(self, path: Path) -> None:
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            with torch.no_grad():
                features = network(probe, return_features=True)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: not a TorchScript network with forward(img, return_features=True): "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        self._network = network
        self.dim = int(features.shape[1])
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()
        inception = path.name == INCEPTION_FILE and self.dim == _INCEPTION_DIM
        self.name = "inception-2015-12-05" if inception else path.stem

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images with values 0 ... 255."""
        self._network.to(images.device)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features: Tensor = self._network(images, return_features=True)
        return features


class DigitsFeatures:
    """The 64-unit hidden layer of a small classifier of 8x8 digits, trained on the spot.

    A multi-layer perceptron 64-128-64-10 with ReLU, trained for some seconds on the given images
    with its own random numbers: the same images give the same features.

    Args:
        images: uint8 (N, 1, 8, 8) with values 0 ... 16.
        labels: int64 (N,), 0 ... 9.
        epochs: passes over the images.
    """

    name = "digits-mlp"
    dim = 64
    full_range = False

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, epochs: int = 60) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = (64, 128, 64, 10)
        linear = [nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(sizes)]
        for layer in linear:
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self._features = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU())
        self._head = linear[2]
        x, y = self._inputs(torch.from_numpy(images)), torch.from_numpy(labels)
        parameters = [*self._features.parameters(), *self._head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-4)
        for _ in range(epochs):
            for index in torch.randperm(len(x), generator=generator).split(64):
                loss = nn.functional.cross_entropy(self._logits(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        digest = hashlib.sha256()
        for parameter in parameters:
            digest.update(parameter.detach().numpy().tobytes())
        self.hash = digest.hexdigest()

    @staticmethod
    def _inputs(images: Tensor) -> Tensor:
        return images.float().flatten(1) / 16.0

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self._head(self._features(x))
        return logits

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images with values 0 ... 16."""
        features: Tensor = self._features.to(images.device)(self._inputs(images))
        return features

    @torch.no_grad()
    def classify(self, images: UInt8[Tensor, "n c h w"]) -> Tensor:
        """The digit that each image is taken for, int64 (N,)."""
        return self._logits(self._inputs(images.cpu())).argmax(1)
