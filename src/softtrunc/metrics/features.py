"""What a distance between image sets is measured in, and what it may then be called."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

# The TorchScript translation of the TensorFlow network that FID is defined by, 95,607,719 bytes.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_NAME = "inception-2015-12-05"
_FULL_FID = 50_000
# What figures are called over any other network.
_ELSEWHERE = {"FID": "FD", "KID": "KD", "IS": "IS", "intra-FID": "intra-FD"}


@runtime_checkable
class FeatureExtractor(Protocol):
    """Images in, feature vectors out.

    - `name`: stands in the name of the distance. `hash`: of what decides the features.
    - `dim`: number of features.
    - `resize`: how images are brought to the network's size.
    - `full_range`: whether images are wanted with values 0 ... 255, or in their own grey levels.
    """

    name: str
    hash: str
    dim: int
    resize: str
    full_range: bool

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of a batch."""

    def probabilities(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class probabilities of a batch, for the inception score."""

    def describe(self, channels: int) -> str:
        """How images with so many channels reach the network, for a protocol."""


def figure_name(
    figure: Literal["FID", "KID", "IS", "intra-FID"], extractor: FeatureExtractor, samples: int
) -> str:
    """What a figure over an extractor's outputs may be called.

    "FID" is over the standard Inception network, known by its SHA-256, and at least 50,000
    samples; with fewer it is "FID@10k". Over anything else it is "FD(name of the extractor)". So
    with KID, which is then KD (kernel distance), and IS.
    """
    if extractor.hash != INCEPTION_SHA256:
        return f"{_ELSEWHERE[figure]}({extractor.name})"
    if samples >= _FULL_FID:
        return figure
    return f"{figure}@{samples // 1000}k" if samples % 1000 == 0 else f"{figure}@{samples}"


def clean_resize(images: UInt8[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Antialiased bicubic, each channel in float32 by Pillow, clipped to [0, 255], not rounded.

    Resizing that skips antialiasing, or rounds, moves FID by more than models differ (Parmar et al.
    2022, arXiv 2104.11222).

    Args:
        images: uint8 of any size.
        size: wanted height and width.

    Returns:
        float32 on the device of `images`.
    """
    n, c = images.shape[:2]
    planes = images.cpu().numpy().astype(np.float32).reshape(n * c, *images.shape[2:])
    out = np.empty((n * c, size, size), dtype=np.float32)
    for target, plane in zip(out, planes, strict=True):
        resized = Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)
        np.clip(np.asarray(resized), 0.0, 255.0, out=target)
    return torch.from_numpy(out.reshape(n, c, size, size)).to(images.device)


class TorchScriptFeatures:
    """Pooled features of a TorchScript network `forward(img_uint8, return_features=True)`.

    Grey images are replicated to three channels (`describe` says so for a protocol).

    Args:
        path: the TorchScript file. The standard `inception-2015-12-05.pt` is known by its
            SHA-256; any other goes by its file name.
        resize: "legacy": the network itself resizes; "clean": Pillow does, antialiased, before
            (`clean_resize`).
        size: side in pixels that "clean" brings images to; 299 is Inception's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not TorchScript, does not take images this way, or `resize` is
            unknown.
    """

    full_range = True

    def __init__(
        self, path: Path, *, resize: Literal["legacy", "clean"] = "legacy", size: int = 299
    ) -> None:
        if resize not in ("legacy", "clean"):
            raise ValueError(f'resize={resize!r} is unknown: write "legacy" or "clean"')
        if size < 1:
            raise ValueError(f"size={size}: need at least 1 pixel, e.g. 299 for Inception")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            with torch.no_grad():
                features = network(probe, return_features=True)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ValueError(
                f"{path}: not a TorchScript network with forward(img, return_features=True): "
                f"{reason}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
            raise ValueError(f"{path}: its features of one image are not one row of numbers")
        self._network = network
        self._clean_size = size if resize == "clean" else None
        self._device = torch.device("cpu")
        # Some networks leave out the last layer's bias on request, as the inception score does.
        arguments = {argument.name for argument in network.forward.schema.arguments}
        self._without_bias = {"no_output_bias": True} if "no_output_bias" in arguments else {}
        self.dim = int(features.shape[1])
        self.resize = "legacy" if resize == "legacy" else f"clean to {size}x{size}"
        with path.open("rb") as stream:
            self.hash = hashlib.file_digest(stream, "sha256").hexdigest()
        self.name = INCEPTION_NAME if self.hash == INCEPTION_SHA256 else path.stem
        if self.name == INCEPTION_NAME and self.hash != INCEPTION_SHA256:
            # Not the network of that name: nobody may read it as such.
            self.name = f"{INCEPTION_NAME}, altered {self.hash[:8]}"

    def _inputs(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"{self.name}: images of {images.shape[1]} channels: need 1 or 3")
        if self._device != images.device:
            self._network.to(images.device)
            self._device = images.device
        if self._clean_size is not None:
            images = clean_resize(images, self._clean_size)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images with values 0 ... 255, 1 or 3 channels.

        Raises:
            ValueError: for other numbers of channels.
        """
        features: Tensor = self._network(self._inputs(images), return_features=True)
        return features

    @torch.no_grad()
    def probabilities(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Class probabilities, for the inception score.

        Raises:
            ValueError: for other numbers of channels than 1 and 3.
        """
        output: Tensor = self._network(self._inputs(images), **self._without_bias)
        return output

    def describe(self, channels: int) -> str:
        """How images with so many channels reach the network, for a protocol."""
        grey = ", grey replicated to 3 channels" if channels == 1 else ""
        return f"{self.resize} resize{grey}"
