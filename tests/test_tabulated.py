"""A discrete schedule made continuous: exact at its points, and an SDE between them."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from softtrunc import VPSDE, TabulatedVPSDE


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Ten uneven steps, the last nearly flat: what no formula made.
UNEVEN = TabulatedVPSDE((0.9, 0.899, 0.7, 0.5, 0.499, 0.2, 0.1, 0.02, 0.0101, 0.01))
SDES = [
    TabulatedVPSDE.from_schedule("linear"),
    TabulatedVPSDE.from_schedule("scaled_linear", 1000, 0.00085, 0.012),
    TabulatedVPSDE.from_schedule("squaredcos_cap_v2", 400),
    TabulatedVPSDE((0.5, 0.1)),
    UNEVEN,
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=repr)


def points(sde) -> torch.Tensor:
    return torch.arange(1, sde.steps + 1, dtype=torch.float64) / sde.steps


@every_sde
def test_the_table_is_met_exactly(sde):
    alpha, sigma = sde.marginal(points(sde))
    table = double(sde.alphas_cumprod)
    torch.testing.assert_close(alpha.square(), table, rtol=1e-13, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - table, rtol=1e-12, atol=0)


@every_sde
def test_log_snr_falls_and_time_of_log_snr_inverts_it(sde):
    t = torch.cat([torch.logspace(-8, 0, 1500, dtype=torch.float64), points(sde)]).sort().values
    log_snr = sde.log_snr(t)
    distinct = t.diff() > 1e-12
    assert (log_snr.diff()[distinct] < 0).all()
    torch.testing.assert_close(sde.time_of_log_snr(log_snr), t, rtol=1e-9, atol=0)
    back = sde.log_snr(sde.time_of_log_snr(log_snr))
    torch.testing.assert_close(back, log_snr, rtol=1e-12, atol=1e-12)
    narrow = sde.time_of_log_snr(log_snr.float())
    exact = sde.time_of_log_snr(log_snr.float().double())
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-7, atol=0)


@every_sde
def test_drift_and_diffusion_are_those_of_the_marginal(sde):
    """By differences, on either side of every point: the slopes meet there."""
    at = points(sde)[:-1]
    for t in (at, at * (1 - 1e-5), at * (1 + 1e-5), 0.3 * at, at + 0.37 / sde.steps):
        h = 1e-7 * t
        slope = (sde.log_snr(t + h) - sde.log_snr(t - h)) / (2 * h)
        rate = sde.diffusion(t).square() / sde.marginal(t).sigma.square()
        torch.testing.assert_close(slope, -rate, rtol=1e-3, atol=1e-4)
        slope = (sde.log_alpha(t + h) - sde.log_alpha(t - h)) / (2 * h)
        torch.testing.assert_close(slope, sde.drift(t), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(sde.drift(t), -0.5 * sde.diffusion(t).square())


@every_sde
def test_time_zero_has_no_noise(sde):
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros((), dtype=dtype)
        alpha, sigma = sde.marginal(zero)
        assert (float(alpha), float(sigma)) == (pytest.approx(1), 0)
        assert not math.isnan(sde.diffusion(zero))


@pytest.mark.parametrize("sde", SDES[:4], ids=repr)
def test_below_the_first_step_noise_grows_in_proportion_to_time(sde):
    first = double(1 / sde.steps)
    for share in (0.5, 1e-3):
        ratio = (sde.log_snr(share * first) - sde.log_snr(first)).exp()
        assert float(ratio) == pytest.approx(1 / share)
    assert float(sde.diffusion(double(0.0))) > 0


@every_sde
def test_float32_is_float64_rounded(sde):
    t = torch.tensor([1e-5, 1e-3, 0.1234, 0.5, 0.777, 1.0])
    for name in ("drift", "diffusion", "log_snr", "log_alpha"):
        narrow = getattr(sde, name)(t)
        assert narrow.dtype == torch.float32
        exact = getattr(sde, name)(t.double())
        torch.testing.assert_close(narrow.double(), exact, rtol=1e-7, atol=1e-12)


def test_the_linear_schedule_comes_to_the_vp_sde_as_its_steps_shrink():
    """N times the steps, 1/N the betas: what is left differs in proportion to 1/N."""
    t = double([0.01, 0.05, 0.2, 0.5, 0.9, 1.0])
    errors = []
    for n in (250, 1000, 4000):
        sde = TabulatedVPSDE.from_schedule("linear", n, 0.1 / n, 20.0 / n)
        errors.append(float((sde.log_snr(t) - VPSDE().log_snr(t)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_cosine_schedule_is_a_cosine():
    sde = TabulatedVPSDE.from_schedule("squaredcos_cap_v2", 1000)
    share = points(sde)[:900]
    angle = (share + 0.008) / 1.008 * math.pi / 2
    cosine = angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)
    torch.testing.assert_close(sde.marginal(share).alpha, cosine, rtol=1e-10, atol=0)


def test_it_is_a_value():
    sde = SDES[0]
    assert sde == TabulatedVPSDE.from_schedule()
    assert hash(sde) == hash(TabulatedVPSDE(double(sde.alphas_cumprod)))
    assert sde != SDES[2]
    assert len(repr(sde)) < 80
    sde.log_snr(double(0.5))
    assert pickle.loads(pickle.dumps(sde)) == sde
    assert (sde.t_end, sde.prior_std, sde.exploding) == (1e-3, 1.0, False)
    assert (sde.conditionings[0], sde.default_prediction) == ("timestep", "noise")
    assert sde.to_dict() == {"type": "TabulatedVPSDE", "alphas_cumprod": sde.alphas_cumprod}


def test_it_is_made_the_same_while_a_network_is_sketched():
    with torch.device("meta"):
        sde = TabulatedVPSDE.from_schedule("scaled_linear", 100)
        ours = sde.log_snr(torch.tensor(0.3, device="cpu"))
    truth = TabulatedVPSDE.from_schedule("scaled_linear", 100)
    assert sde == truth
    assert torch.equal(ours, truth.log_snr(torch.tensor(0.3)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TabulatedVPSDE((0.5,)), "1 steps: need at least 2"),
        (lambda: TabulatedVPSDE((0.5, 0.5)), r"alphas_cumprod\[1\] = 0\.5: .*fall strictly"),
        (lambda: TabulatedVPSDE((1.0, 0.5)), r"alphas_cumprod\[0\] = 1\.0"),
        (lambda: TabulatedVPSDE((0.5, 0.0)), r"alphas_cumprod\[1\] = 0\.0"),
        (lambda: TabulatedVPSDE((0.5, math.nan)), r"alphas_cumprod\[1\] = nan"),
        (lambda: TabulatedVPSDE.from_betas([0.1, 1.0]), r"betas must lie in \(0, 1\)"),
        (lambda: TabulatedVPSDE.from_schedule("sigmoid"), "schedule 'sigmoid' is unknown"),
        (lambda: TabulatedVPSDE.from_schedule(beta_start=0.0), "betas must lie"),
    ],
)
def test_an_impossible_table_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        TabulatedVPSDE.from_schedule(),
        TabulatedVPSDE.from_schedule("squaredcos_cap_v2", steps=10),
        TabulatedVPSDE((0.9, 0.1)),
        TabulatedVPSDE((0.99, 0.99 - 1e-9, 0.5, 0.5 - 1e-9, 0.1)),  # slopes of 0 beside steep ones
    ],
    ids=repr,
)
def test_as_many_steps_as_a_table_needs_find_every_time(table):
    assert table._solver_steps < 20
    ends = torch.tensor([1e-9, *range(1, table.steps + 1)], dtype=torch.float64) / table.steps
    share = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)[:, None]
    t = torch.lerp(ends[:-1], ends[1:], share)
    back = table.time_of_log_snr(table.log_snr(t))
    # What a rounded log-SNR leaves open counts; where the table is flat that is a lot of time.
    torch.testing.assert_close(table.log_snr(back), table.log_snr(t), rtol=1e-13, atol=1e-13)
    # Of each number on its own: whatever else is solved with it.
    assert torch.equal(back[7], table.time_of_log_snr(table.log_snr(t[7])))
