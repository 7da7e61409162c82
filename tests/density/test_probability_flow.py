import math
from dataclasses import dataclass, replace

import pytest
import torch
from exact import Gaussian, Mixture
from gaussian_truth import GaussianTruth
from torch import Tensor, nn

from softtrunc import VESDE, VPSDE, ScoreModel
from softtrunc.density import (
    StepUnderflowError,
    bin_centers,
    mean_with_error,
    nelbo,
    probability_flow_nll,
)
from softtrunc.flow.chunks import in_chunks
from softtrunc.networks import ScoreUNet, preset

DOUBLE = {"dtype": torch.float64}
TERMS = ("prior", "flow", "residual", "nats")


def mixture(sde, dim=2):
    generator = torch.Generator().manual_seed(7)
    return Mixture(
        sde,
        0.5 * torch.randn(3, dim, generator=generator, **DOUBLE),
        torch.tensor([0.1, 0.2, 0.3], **DOUBLE),
        torch.tensor([0.5, 0.3, 0.2], **DOUBLE),
    )


@pytest.mark.parametrize("dim", [2, 64, 3072])
def test_gaussian_truth_of_every_example(sde, dim):
    """Within 1e-3 bits of the model's exact density, each term; a diagonal Jacobian makes
    Hutchinson's estimate exact, so that 3072 dimensions need no 3072 backward passes."""
    truth = GaussianTruth(sde, dim)
    x = truth.model.sample(8, generator=truth.generator).float()
    found = probability_flow_nll(
        truth.model,
        x,
        divergence="exact" if dim <= 64 else "hutchinson",
        residual=False,
        seeds=range(8),
    )
    error = truth.bits(found.nats - truth.flow_nats(x)).abs().max()
    assert error < 1e-3
    x_end = truth.model.flow_map(x.double(), truth.low, truth.high)
    assert truth.bits(found.prior + sde.prior_log_prob(x_end)).abs().max() < 1e-3
    assert (found.residual == 0).all()
    assert found.nats.dtype == torch.float64
    torch.testing.assert_close(found.nats, found.prior + found.flow + found.residual)
    assert found.nfe.dtype == torch.int64
    assert (found.nfe > 10).all()


@pytest.mark.parametrize("dim", [2, 64])
def test_mean_is_the_entropy_of_the_data(sde, dim):
    """-log p minus the true -log p of the same examples, with residual and exact divergence: what
    remains is the gap of the Gaussian reconstruction and the prior's mismatch, below 5e-3 bits."""
    truth = GaussianTruth(sde, dim)
    x = truth.model.sample(100, generator=truth.generator)
    mean, std = truth.model.mean, truth.model.std
    data = -torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    found = probability_flow_nll(
        truth.model, x, divergence="exact", generator=torch.Generator().manual_seed(0)
    )
    gap, error, _ = mean_with_error(truth.bits(found.nats - data))
    assert -1e-3 - 3 * error < gap < 5e-3
    # The expected gap in closed form: KL of the true to the modelled reconstruction.
    alpha, sigma = sde.marginal(truth.low)
    v = (1.0 + (sigma / (alpha * std)).square()).reciprocal()
    kl = 0.5 * (v - 1.0 - v.log()).sum()
    assert abs(gap - truth.bits(kl)) < 1e-3 + 3 * error


def rotated(sde, dim):
    """A Gaussian whose Jacobian is far from diagonal, as a model of one event axis."""
    generator = torch.Generator().manual_seed(3)
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, **DOUBLE))
    std = torch.linspace(0.05, 0.8, dim, **DOUBLE)
    return Rotated(Gaussian(sde, torch.zeros(dim, **DOUBLE), std), basis), generator


@dataclass(frozen=True)
class Rotated:
    inner: Gaussian
    basis: Tensor

    @property
    def sde(self):
        return self.inner.sde

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        basis = self.basis.to(x)
        return self.inner.score(x @ basis, t) @ basis.T


def test_hutchinson_is_unbiased_and_shrinks_with_probes(sde):
    model, generator = rotated(sde, 16)
    x = (model.inner.sample(1, generator=generator) @ model.basis.T).expand(300, -1)
    exact = probability_flow_nll(model, x[:1], divergence="exact", residual=False).nats
    spread = []
    for probes in (1, 4):
        found = probability_flow_nll(
            model, x, probes=probes, residual=False, generator=generator, rtol=1e-4, atol=1e-4
        )
        mean, error, _ = mean_with_error(found.nats - exact)
        assert abs(mean) < 3 * error + 1e-2
        spread.append(error)
    assert 1.6 < spread[0] / spread[1] < 2.4


def test_density_integrates_to_one():
    """A network that nobody trained is still a density: the flow is invertible whatever it is."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    model = ScoreModel(Conditioned(body), VPSDE())
    axis = torch.linspace(-6.0, 6.0, 61, **DOUBLE)
    x = torch.cartesian_prod(axis, axis)
    found = probability_flow_nll(
        model, x, eps=1e-3, divergence="exact", residual=False, rtol=1e-4, atol=1e-4
    )
    integral = float((-found.nats).exp().sum()) * float(axis[1] - axis[0]) ** 2
    assert integral == pytest.approx(1.0, abs=0.01)
    # Far from a Gaussian, or the test would say nothing of the network's divergence.
    assert float((found.flow - found.flow.mean()).abs().max()) > 0.3


class Conditioned(nn.Module):
    """A small body that sees x and the label."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        label = label.reshape(-1, *([1] * (x.ndim - 1))).expand(*x.shape[:-1], 1)
        return self.body(torch.cat([x, label / 999.0], -1)) + 0.9 * x


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["VP", "VE"])
def test_mixture_density_by_quadrature(sde):
    model = mixture(sde)
    axis = torch.linspace(-1.8, 2.2, 65, **DOUBLE)
    x = torch.cartesian_prod(axis, axis)
    found = probability_flow_nll(model, x, divergence="exact", residual=False)
    integral = float((-found.nats).exp().sum()) * float(axis[1] - axis[0]) ** 2
    assert integral == pytest.approx(1.0, abs=0.01)
    eps = torch.tensor(1e-5, **DOUBLE)
    truth = -model.log_prob(x, eps)
    inside = truth < 6.0
    # The prior is no mixture: far out in the tails it rules, near the data it does not show.
    assert (found.nats - truth)[inside].abs().max() / (2 * math.log(2.0)) < 0.02


def test_discrete_toy_is_bounded_from_above_within_five_percent():
    """Eight levels in two dimensions with known probabilities, modelled exactly."""
    levels = 8
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(torch.randn(levels**2, generator=generator, **DOUBLE), 0)
    grid = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
    centers = bin_centers(grid, levels, dtype=torch.float64)
    entropy = float(-(p * p.log()).sum())
    model = Mixture(VPSDE(), centers, torch.zeros(levels**2, **DOUBLE), p)
    for eps in (1e-4, 1e-3):
        for found in (
            probability_flow_nll(
                model,
                centers,
                eps=eps,
                divergence="exact",
                reconstruction="discrete",
                levels=levels,
                seeds=range(64),
            ),
            nelbo(
                model,
                centers.repeat(6, 1),
                eps=eps,
                draws=32,
                reconstruction="discrete",
                levels=levels,
                generator=generator,
            ),
        ):
            nats = found.nats.reshape(-1, levels**2)
            bound = float((nats.mean(0) * p).sum())
            error = float((nats.var(0) * p.square()).sum().sqrt()) / len(nats) ** 0.5
            noise = 3 * error if len(nats) > 1 else 0.02
            assert entropy - noise < bound < 1.05 * entropy + noise
            bits = found.bits_per_dim(levels)
            torch.testing.assert_close(bits, found.nats / (2 * math.log(2.0)))


@pytest.mark.parametrize("residual", [True, False])
def test_an_example_does_not_see_its_batch(sde, residual):
    model = mixture(sde, 12)
    x = model.sample(4, generator=torch.Generator().manual_seed(0)).float()
    x[1] = 30.0  # a stray example that needs more steps than the others
    options = {"residual": residual, "probes": 2, "rtol": 1e-3, "atol": 1e-3}
    whole = probability_flow_nll(model, x, seeds=range(4), **options)
    chunked = probability_flow_nll(model, x, seeds=range(4), chunk_size=3, **options)
    some = probability_flow_nll(model, x[[2, 0]], seeds=[2, 0], **options)
    bits = whole.bits_per_dim()
    limit = 1e-4 * bits.abs().clamp(min=1.0)
    assert ((chunked.bits_per_dim() - bits).abs() < limit).all()
    assert ((some.bits_per_dim() - bits[[2, 0]]).abs() < limit[[2, 0]]).all()
    assert whole.nfe[1] != whole.nfe[2]


def test_a_network_does_not_see_its_batch_either():
    """It rounds differently in every batch size, and it is rough in t: rounding must not move the
    steps, or the same example comes out with another error of the solver, 1e-3 and more here."""
    network = ScoreUNet(preset("tiny", image_size=8, channels=1, base_channels=8)).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        if weight.ndim > 1:
            std = 0.1 / weight[0].numel() ** 0.5
            weight.data = std * torch.randn(weight.shape, generator=generator)
    model = ScoreModel(network, VPSDE())
    x = torch.randn(6, 1, 8, 8, generator=generator).clamp(-1.0, 1.0)
    whole, parts = (
        probability_flow_nll(model, x, seeds=range(6), rtol=3e-3, atol=3e-3, chunk_size=c)
        for c in (None, 2)
    )
    gap = (whole.bits_per_dim() - parts.bits_per_dim()).abs()
    assert (gap < 1e-4).sum() >= 5
    assert (whole.nfe == parts.nfe).sum() >= 5


def test_runs_repeat_by_generator_and_differ_without():
    model = mixture(VPSDE(), 12)
    x = model.sample(4, generator=torch.Generator().manual_seed(0)).float()
    runs = [
        probability_flow_nll(model, x, generator=torch.Generator().manual_seed(s), chunk_size=c)
        for s, c in ((1, None), (1, None), (2, None))
    ]
    for name in TERMS:
        assert torch.equal(getattr(runs[0], name), getattr(runs[1], name))
    assert not torch.equal(runs[0].nats, runs[2].nats)


def test_memory_that_runs_out_halves_the_chunk():
    sizes = []

    def work(part: slice) -> list[int]:
        size = part.stop - part.start
        sizes.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("out of memory")
        return list(range(part.start, part.stop))

    assert [i for part in in_chunks(work, 10) for i in part] == list(range(10))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_chunks(lambda part: work(slice(0, 99)), 2)
    with pytest.raises(RuntimeError, match="shapes"):
        in_chunks(lambda part: (_ for _ in ()).throw(RuntimeError("shapes")), 2)
    with pytest.raises(ValueError, match="chunk_size=0"):
        in_chunks(work, 2, 0)


def test_score_model_under_no_grad_and_with_frozen_weights():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
    model = ScoreModel(Conditioned(body), VPSDE())
    x = torch.randn(3, 2)
    free = probability_flow_nll(model, x, seeds=range(3))
    with torch.no_grad():
        guarded = probability_flow_nll(model.requires_grad_(False), x, seeds=range(3))
    assert torch.equal(free.nats, guarded.nats)
    assert not free.nats.requires_grad


@dataclass(frozen=True)
class Blind(Gaussian):
    def score(self, x: Tensor, t: Tensor) -> Tensor:
        return super().score(x, t).detach()


@dataclass(frozen=True)
class Cliff(Gaussian):
    """A score that jumps to nan beyond t = 0.3."""

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        bad = (t.to(x) > 0.3).reshape(-1, *([1] * (x.ndim - 1)))
        return torch.where(bad, torch.nan, super().score(x, t))


def test_methods_agree(sde):
    model = mixture(sde, 6)
    x = model.sample(6, generator=torch.Generator().manual_seed(0))
    tight, loose = (
        probability_flow_nll(model, x, seeds=range(6), method=m, rtol=tol, atol=tol)
        for m, tol in (("rk45", 1e-7), ("rk23", 3e-4))
    )
    assert (loose.bits_per_dim() - tight.bits_per_dim()).abs().mean() < 1e-3
    assert (loose.nfe < tight.nfe).all()


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named():
    model = GaussianTruth(VPSDE(), 2).model
    x = torch.zeros(2, 2)
    plain = {"sde": model.sde, "mean": model.mean, "std": model.std}
    for change, why in (
        ({"eps": 0.0}, "0 < eps < T"),
        ({"eps": 1.0}, "0 < eps < T"),
        ({"divergence": "guess"}, "hutchinson"),
        ({"probes": 0}, "probes=0"),
        ({"atol": 0.0}, "atol"),
        ({"data_std": -1.0}, "data_std"),
        ({"method": "euler"}, "rk23"),
        ({"reconstruction": "cubic"}, "gaussian"),
        ({"reconstruction": "discrete", "residual": False}, "residual=True"),
        ({"seeds": [1]}, "1 of them for 2"),
    ):
        with pytest.raises(ValueError, match=why):
            probability_flow_nll(model, x, **change)
    with pytest.raises(ValueError, match="dequantize"):
        probability_flow_nll(model, x.byte())
    with pytest.raises(ValueError, match="nan or inf"):
        probability_flow_nll(model, x / 0.0)
    with pytest.raises(ValueError, match="no_grad"):
        probability_flow_nll(Blind(**plain), x)
    with pytest.raises(ValueError, match=r"model\.eval"):
        probability_flow_nll(ScoreModel(nn.Dropout(0.1), VPSDE()), x)
    with pytest.raises(StepUnderflowError, match=r"t = 0\.[23]\d* .*not finite there: raise eps"):
        probability_flow_nll(Cliff(**plain), x)


def test_a_change_of_scale_costs_time_and_nothing_else(sde):
    model = mixture(sde, 6)
    x = model.sample(6, generator=torch.Generator().manual_seed(0))
    tight = {"seeds": range(6), "rtol": 1e-6, "atol": 1e-6}
    bits = [
        probability_flow_nll(model, x, data_std=s, **tight).bits_per_dim() for s in (0.1, 0.5, 2.0)
    ]
    torch.testing.assert_close(bits[0], bits[1], rtol=0.0, atol=1e-4)
    torch.testing.assert_close(bits[2], bits[1], rtol=0.0, atol=1e-4)


def test_a_wrong_score_costs_bits():
    """The density must notice a model that is wrong: twice the true spread."""
    truth = GaussianTruth(VPSDE(), 8)
    x = truth.model.sample(200, generator=truth.generator)
    wide = replace(truth.model, std=2.0 * truth.model.std)
    right, wrong = (
        probability_flow_nll(m, x, divergence="exact", seeds=range(200)).nats.mean()
        for m in (truth.model, wide)
    )
    # KL between the Gaussians: D (log 2 - 3/8).
    assert float(wrong - right) == pytest.approx(8 * (math.log(2.0) - 0.375), abs=0.4)
