"""A model that holds something for each example is asked for the right ones in any part."""

from dataclasses import dataclass

import pytest
import torch
from exact import Gaussian
from torch import Tensor

from softtrunc import SDE, VPSDE
from softtrunc.density import nelbo, probability_flow_nll
from softtrunc.samplers import ProbabilityFlow, encode
from softtrunc.score import rows_of
from softtrunc.sde import expand_to


@dataclass(frozen=True)
class Own:
    """Every example has a Gaussian of its own width, (B,)."""

    sde: SDE
    std: Tensor

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.marginal(t)
        return -x / expand_to((alpha * self.std).square() + sigma.square(), x)

    def rows(self, index: Tensor) -> "Own":
        return Own(self.sde, self.std[index])


MODEL = Own(VPSDE(), torch.tensor([0.05, 1.0, 0.3, 0.6, 0.1], dtype=torch.float64))
# The narrow examples need more steps: the wide ones leave the batch before them.
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X * MODEL.std[:, None]


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("measure", [probability_flow_nll, nelbo])
def test_every_example_keeps_its_own(measure, chunk_size):
    together = measure(MODEL, X, seeds=range(5), chunk_size=chunk_size)
    for i in range(5):
        alone = measure(MODEL.rows(torch.tensor([i])), X[i : i + 1], seeds=[i])
        torch.testing.assert_close(together.nats[i], alone.nats[0], rtol=1e-9, atol=1e-9)


def test_samples_and_latents_keep_their_own():
    flow, latents = ProbabilityFlow(rtol=1e-7, atol=1e-7, denoise_final=False), encode(MODEL, X).x
    options = {"x_init": latents, "dtype": torch.float64}
    together = flow.sample(MODEL, X.shape, **options).x
    assert (together - X).abs().max() < 1e-3
    for i in range(5):
        options["x_init"] = latents[i : i + 1]
        alone = flow.sample(MODEL.rows(torch.tensor([i])), (1, 3), **options).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_a_model_that_needs_nothing_is_itself():
    plain = Gaussian(VPSDE(), torch.zeros(2), torch.ones(2))
    assert rows_of(plain, torch.tensor([1]), 2) is plain
