"""Statistics of references that somebody else computed: an .npz with `mu` and `sigma`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.data.formats.arrays import Npz

# Sums in another order leave a covariance asymmetric by so much of its largest number.
_ASYMMETRY = 1e-3
_STATISTICS = {"mu", "sigma"}


class KnownStatistics(NamedTuple):
    """Mean and covariance of features, float64; of which images and extractor no such file says.

    - `name`, `sha256`: of the file.
    """

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    name: str
    sha256: str

    def check(self, dim: int) -> None:
        """Refuse statistics of another number of features.

        Raises:
            ValueError: if there are not `dim`.
        """
        if len(self.mean) != dim:
            raise ValueError(
                f"{self.name}: statistics of {len(self.mean)} features, the extractor gives {dim}: "
                "name the one that they were computed with by --features"
            )


def holds_statistics(path: Path) -> bool:
    """Whether a file is an .npz with `mu` and `sigma`, as pytorch-fid, EDM, ADM and others write.

    Raises:
        ValueError: if it is called .npz and broken.
    """
    suffix = path.suffix.lower()
    return suffix == ".npz" and path.is_file() and set(Npz(path).headers) >= _STATISTICS


def holds_images(path: Path) -> bool:
    """Whether there are images beside the statistics, as in ADM's reference batches."""
    return any(len(header.shape) in (3, 4) for header in Npz(path).headers.values())


def read_statistics(path: Path) -> KnownStatistics:
    """Read `mu` and `sigma`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if they are not there, or no mean and covariance.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    npz = Npz(path)
    if not set(npz.headers) >= _STATISTICS:
        raise ValueError(f"{path}: no statistics: an .npz with arrays mu and sigma is read")
    mean, covariance = npz.read("mu"), npz.read("sigma")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise ValueError(
            f"{path}: mu {mean.shape} and sigma {covariance.shape} are no mean and covariance"
        )
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise ValueError(f"{path}: mu {mean.dtype} and sigma {covariance.dtype}: not real numbers")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu or sigma holds values that are not finite")
    skew = float(np.abs(covariance - covariance.T).max())
    if skew > _ASYMMETRY * float(np.abs(covariance).max()) or bool(
        (covariance.diagonal() < 0).any()
    ):
        raise ValueError(f"{path}: sigma is no covariance: not symmetric, or of negative variance")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    first, second = (torch.from_numpy(each.astype(np.float64)) for each in (mean, covariance))
    return KnownStatistics(first, second, path.name, digest)
