"""What the density of a Gaussian with its exact score must come out as."""

import math

import torch
from exact import Gaussian
from torch import Tensor

from softtrunc import SDE


class GaussianTruth:
    """Diagonal Gaussian data, and what each density of its exact score must be."""

    def __init__(self, sde: SDE, dim: int, *, eps: float = 1e-5, dtype=torch.float64) -> None:
        generator = torch.Generator().manual_seed(dim)
        mean = 0.3 * torch.randn(dim, generator=generator, dtype=torch.float64)
        std = 0.1 + 0.5 * torch.rand(dim, generator=generator, dtype=torch.float64)
        self.model = Gaussian(sde, mean, std)
        self.generator = generator
        self.dim = dim
        self.low = torch.tensor(eps, dtype=torch.float64)
        self.high = torch.tensor(sde.t_max, dtype=torch.float64)

    def flow_nats(self, x_eps: Tensor) -> Tensor:
        """-log density at eps of the exact flow started from the model's prior at T."""
        x_eps = x_eps.double()
        x_end = self.model.flow_map(x_eps, self.low, self.high)
        variances = [self.model.moments(t, x_eps)[1] for t in (self.low, self.high)]
        log_det = 0.5 * (variances[1].log() - variances[0].log()).sum()
        return -self.model.sde.prior_log_prob(x_end) - log_det

    def bits(self, nats: Tensor) -> Tensor:
        return nats / (self.dim * math.log(2.0))
