"""The noise label that a network was trained with is found by its denoising error."""

import pytest
import torch
from public_network import VE, checkpoint, configuration
from torch import nn

from softtrunc.interop import choose_conditioning, load_score_sde_checkpoint
from softtrunc.interop.conditioning import random_images
from softtrunc.score import ScoreModel, noise_label
from softtrunc.sde import VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

pytestmark = pytest.mark.usefixtures("unchecked")


class GaussianNoise(nn.Module):
    """The exact noise in N(0, spread^2) data, for a network that reads one kind of label."""

    def __init__(self, sde, conditioning, spread=0.3):
        super().__init__()
        self.spread = spread
        self.sign = -1.0 if isinstance(sde, VESDE | ReciprocalVESDE) else 1.0
        t = torch.logspace(-6, 0, 4000, dtype=torch.float64)
        self.labels = noise_label(sde, conditioning, t)
        self.alpha, self.sigma = sde.marginal(t)

    def forward(self, x, label):
        index = torch.searchsorted(self.labels, label.double()).clamp(max=len(self.labels) - 1)
        alpha, sigma = (v[index][:, None].to(x.dtype) for v in (self.alpha, self.sigma))
        return self.sign * sigma * x / (alpha**2 * self.spread**2 + sigma**2)


# The labels of exploding SDEs part below sigma = 0.01: only fine data show which one is right.
CASES = [
    (VPSDE(), 0.3),
    (SubVPSDE(), 0.3),
    (VESDE(1e-3, 50.0), 0.003),
    (ReciprocalVESDE(), 0.003),
]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("sde", "spread"), CASES)
def test_the_label_of_training_is_found(sde, spread, index):
    candidates = sde.conditionings
    network = GaussianNoise(sde, candidates[index], spread)
    models = {
        c: ScoreModel(network, sde, conditioning=c, value_range=(-1.0, 1.0)) for c in candidates
    }
    generator = torch.Generator().manual_seed(0)
    x = spread * torch.randn(256, 200, generator=generator, dtype=torch.float64)
    choice = choose_conditioning(models, x, generator=generator)
    assert choice.conditioning == candidates[index]
    # What remains is the part of the noise that nobody can tell from the data.
    ends = sde.log_snr(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    snr = torch.linspace(float(ends[0]), float(ends[1]), 10_000, dtype=torch.float64).exp()
    floor = float((snr * spread**2 / (1 + snr * spread**2)).mean())
    assert choice.errors[candidates[index]] == pytest.approx(floor, rel=0.02)
    assert choice.errors[candidates[1 - index]] > 1.005 * choice.errors[candidates[index]]


def test_a_model_that_breaks_is_not_chosen():
    class Broken(nn.Module):
        def forward(self, x, _label):
            return x * torch.nan

    sde = VPSDE()
    models = {
        "time": ScoreModel(Broken(), sde, conditioning="time"),
        "unbounded_time": ScoreModel(GaussianNoise(sde, "time"), sde, conditioning="time"),
    }
    assert choose_conditioning(models, torch.zeros(4, 3)).conditioning == "unbounded_time"


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="at least one"):
        choose_conditioning({}, torch.zeros(4, 3))


def test_random_images_have_a_natural_spectrum():
    x = random_images((64, 1, 32, 48), (0.0, 1.0), generator=torch.Generator().manual_seed(0))
    assert x.shape == (64, 1, 32, 48)
    assert float(x.min()) >= 0.0
    assert float(x.max()) <= 1.0
    assert abs(float(x.mean()) - 0.5) < 0.05
    power = torch.fft.fft2(x - x.mean()).abs().square().mean((0, 1))
    # Twice the frequency, a quarter of the power; clipping bends it a little.
    assert float(power[0, 3] / power[0, 6]) == pytest.approx(4.0, rel=0.4)


@pytest.mark.parametrize("given", [True, False])
def test_auto_takes_the_better_one(tmp_path, given):
    config = configuration(VE | {"model.sigma_min": 1e-3})
    content, _, _ = checkpoint(config)
    path = tmp_path / "c.pth"
    torch.save(content, path)
    images = torch.full((8, 3, 16, 16), 0.5) if given else None

    def seed():
        return torch.Generator().manual_seed(3)

    models = {
        c: load_score_sde_checkpoint(path, config, conditioning=c)
        for c in ("log_sigma", "unbounded_sigma")
    }
    generator = seed()
    x = images if given else random_images((32, 3, 16, 16), (0.0, 1.0), generator=generator)
    expected = choose_conditioning(models, x, generator=generator).conditioning
    auto = load_score_sde_checkpoint(
        path, config, conditioning="auto", images=images, generator=seed()
    )
    assert auto.conditioning == expected
    assert {c: m.conditioning for c, m in models.items()} == {c: c for c in models}
