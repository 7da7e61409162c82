"""What every sampler promises: seeds, determinism, counts, hooks, options, clear complaints."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sampler_cases import SAMPLERS, SDES, Counted, gaussian, generator, mixture, prior_draw
from torch import nn

from softtrunc.noise import Noise
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
)
from softtrunc.samplers.grids import point_at, schedule, step_length
from softtrunc.score import ScoreModel, tweedie
from softtrunc.sde import VESDE, VPSDE, ReciprocalVESDE

# The same methods in fewer steps: nothing here depends on how well they converge.
SHORT = {
    "dpm3": DPMSolver(steps=8, order=3),
    "dpm2_sde": DPMSolver(steps=8, stochastic=True),
    "heun": Heun(steps=8),
    "heun_churn": Heun(steps=8, churn=4.0),
    "flow": ProbabilityFlow(rtol=1e-3, atol=1e-3),
    "euler_maruyama": EulerMaruyama(steps=30),
    "ancestral": Ancestral(steps=30),
    "pc": PredictorCorrector(steps=20),
}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("name", SHORT)
def test_a_seeded_sample_does_not_depend_on_its_batch(name, sde):
    model = mixture(sde)
    together = SHORT[name].sample(model, (8, 2), seeds=range(10, 18)).x
    for part in ([3], [3, 0, 7]):
        alone = SHORT[name].sample(model, (len(part), 2), seeds=[10 + i for i in part]).x
        torch.testing.assert_close(alone, together[part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SHORT)
def test_the_same_seed_gives_the_same_samples_and_another_does_not(name):
    model = mixture(VPSDE())

    def draw(seed):
        return SHORT[name].sample(model, (4, 2), generator=generator(seed)).x

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(*(SHORT[name].sample(model, (1, 2), seeds=[s]).x for s in (0, 1)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_nfe_is_the_number_of_calls(name):
    model = Counted(mixture(VPSDE()))
    assert SAMPLERS[name].sample(model, (5, 2), generator=generator()).nfe == model.calls > 0


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (DPMSolver(), 20),
        (DPMSolver(steps=1), 1),
        (DPMSolver(steps=7, order=3, denoise_final=False), 7),
        (Heun(), 35),
        (Heun(steps=4, denoise_final=False), 8),
        (EulerMaruyama(steps=9), 9),
        (Ancestral(steps=9, denoise_final=False), 9),
        (PredictorCorrector(steps=9), 18),
        (PredictorCorrector(steps=9, corrector_steps=0), 9),
        (PredictorCorrector(steps=9, corrector_steps=3, denoise_final=False), 36),
    ],
    ids=repr,
)
def test_nfe_of_fixed_steps(sampler, nfe):
    assert sampler.sample(mixture(VPSDE()), (2, 2), generator=generator()).nfe == nfe


def test_adaptive_steps_cost_each_example_its_own():
    # An easy example (from near the mode) leaves the batch before a hard one.
    model = Counted(mixture(VPSDE()))
    nfe = ProbabilityFlow().sample(model, (64, 2), generator=generator()).nfe
    assert nfe == model.calls
    assert model.examples < 0.95 * 64 * nfe


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("make", [DPMSolver, Heun, EulerMaruyama, Ancestral])
def test_the_final_step_is_tweedies_formula(make, sde):
    # `steps` with the final denoising is `steps - 1` to t_end, then E[x_0 | x_t].
    model = gaussian(sde, 4)
    kwargs = {"seeds": range(3), "dtype": torch.float64}
    noisy = make(steps=9, denoise_final=False).sample(model, (3, 4), **kwargs).x
    clean = make(steps=10, t_end=sde.t_end).sample(model, (3, 4), **kwargs).x
    end = point_at(sde, sde.t_end)
    score = model.score(noisy, torch.tensor(sde.t_end).double())
    torch.testing.assert_close(
        clean, tweedie(noisy, score, end.alpha, end.sigma), rtol=1e-9, atol=1e-9
    )


def test_the_flow_denoises_at_its_end_too():
    model, x = gaussian(VPSDE(), 4), prior_draw(VPSDE(), 3, 4)
    kwargs = {"x_init": x, "dtype": torch.float64}
    noisy = ProbabilityFlow(denoise_final=False).sample(model, (3, 4), **kwargs)
    clean = ProbabilityFlow().sample(model, (3, 4), **kwargs)
    end = point_at(VPSDE(), 1e-3)
    score = model.score(noisy.x, torch.tensor(1e-3).double())
    torch.testing.assert_close(clean.x, tweedie(noisy.x, score, end.alpha, end.sigma))
    assert clean.nfe == noisy.nfe + 1


@pytest.mark.parametrize("name", SHORT)
def test_callback_sees_the_whole_way(name):
    seen = []
    model = mixture(VPSDE())
    samples = SHORT[name].sample(model, (3, 2), generator=generator(), callback=seen.append)
    assert seen[-1].fraction == 1.0
    assert seen[-1].t == 0.0
    assert torch.equal(seen[-1].x, samples.x)
    fractions, times = [p.fraction for p in seen], [p.t for p in seen]
    assert fractions == sorted(fractions)
    assert times == sorted(times, reverse=True)
    assert [p.step for p in seen] == list(range(len(seen)))
    assert all(p.x.shape == p.denoised.shape == (3, 2) for p in seen)


def test_callback_states_of_the_flow_lie_on_the_flow():
    model, x = gaussian(VPSDE(), 6), prior_draw(VPSDE(), 1, 6)
    seen = []
    ProbabilityFlow(denoise_final=False).sample(
        model, (1, 6), x_init=x, dtype=torch.float64, callback=seen.append
    )
    for p in seen:
        t = torch.tensor(p.t, dtype=torch.float64)
        exact = model.flow_map(x, torch.tensor(1.0).double(), t)
        torch.testing.assert_close(p.x, exact, rtol=1e-4, atol=1e-4)
        denoised = tweedie(exact, model.score(exact, t), *point_at(VPSDE(), p.t)[1:])
        torch.testing.assert_close(p.denoised, denoised, rtol=1e-3, atol=1e-3)


def test_score_hook_replaces_the_models_score():
    # Guidance by a likelihood N(y; x_0, s^2) at the exact posterior score of a Gaussian.
    sde = VPSDE()
    prior = gaussian(sde, 8)
    precision = prior.std**-2 + 0.3**-2
    posterior = type(prior)(
        sde, (prior.mean / prior.std**2 + 0.5 / 0.3**2) / precision, precision.rsqrt()
    )

    def guided(x, t):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_p = posterior.log_prob(x, t).sum()
            return torch.autograd.grad(log_p, x)[0]

    x = DPMSolver(order=3).sample(prior, (4000, 8), generator=generator(), score_fn=guided).x
    assert not x.requires_grad
    assert ((x.mean(0) - posterior.mean) / posterior.std).abs().max() < 5 / math.sqrt(4000) + 0.02
    assert (x.std(0) / posterior.std - 1).abs().max() < 0.08


class Body(nn.Module):
    """A network with dropout, in the precision asked for."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, dtype=dtype)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(6).eval()
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x, label):
        self.dtypes.add(x.dtype)
        return self.dropout(self.linear(x)) + 0.0 * label[:, None]


def test_dropout_is_off_while_sampling_and_modes_come_back():
    model = ScoreModel(Body(), VPSDE())
    draws = [DPMSolver(steps=4).sample(model, (2, 6), seeds=[1, 2]).x for _ in range(2)]
    assert torch.equal(*draws)
    assert model.training
    assert model.network.dropout.training
    assert not model.network.frozen.training


def test_state_stays_single_while_the_network_is_half():
    model = ScoreModel(Body(torch.bfloat16), VPSDE())
    samples = DPMSolver(steps=4).sample(model, (2, 6), seeds=[1, 2])
    assert samples.x.dtype == torch.float32
    assert model.network.dtypes == {torch.bfloat16}
    assert not samples.x.requires_grad


@pytest.mark.parametrize("name", SHORT)
def test_state_precision_is_what_was_asked(name):
    model = gaussian(VPSDE(), 3)
    for dtype in (torch.float32, torch.float64):
        assert SHORT[name].sample(model, (2, 3), seeds=[1, 2], dtype=dtype).x.dtype == dtype


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("grid", ["uniform", "reciprocal", "log_snr", "edm", "asinh"])
def test_grids_are_equally_spaced_in_their_variable(sde, grid):
    points = schedule(sde, grid, 12, None)
    assert (points[0].t, points[-1].t) == (sde.t_max, sde.t_end)
    v = {
        "uniform": [p.t for p in points],
        "reciprocal": [1 / p.t for p in points],
        "log_snr": [2 * p.half_log_snr for p in points],
        "edm": [p.noise_ratio ** (1 / 7) for p in points],
        "asinh": [math.asinh((p.half_log_snr + 0.25) / 2) for p in points],
    }[grid]
    gaps = [b - a for a, b in pairwise(v)]
    assert gaps == pytest.approx([gaps[0]] * 12, rel=1e-6)
    # A step's length in t tends to the difference of the times.
    fine = schedule(sde, grid, 20_000, None)[10_000:10_002]
    assert step_length(sde, grid, *fine) == pytest.approx(fine[0].t - fine[1].t, rel=1e-2)
    # And a long one is in proportion to the change of the variable.
    one, two = (step_length(sde, grid, points[6], points[i]) for i in (7, 8))
    assert two == pytest.approx(2 * one, rel=1e-6)


@pytest.mark.parametrize(("stochastic", "error"), [(False, 0.04), (True, 0.08)])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_few_steps_end_where_noise_is_as_small_as_their_error(sde, stochastic, error):
    start, ends = point_at(sde, sde.t_max).half_log_snr, []
    for steps in (2, 5, 10, 20, 28, 100, 1000):
        times = []

        def score(x, t, times=times):
            times.append(float(t[0]))
            return torch.zeros_like(x)

        DPMSolver(steps, 2, stochastic).sample(mixture(sde), (1, 2), seeds=[0], score_fn=score)
        end = point_at(sde, times[-1])
        ends.append(end.t)
        h = (end.half_log_snr - start) / (steps - 1)
        if end.t > sde.t_end * 1.001:
            assert end.noise_ratio == pytest.approx(error * h**2, rel=1e-3)
        else:
            assert end.noise_ratio >= error * h**2 * 0.99
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == pytest.approx(sde.t_end)
    if isinstance(sde, VPSDE | VESDE):  # and not those that go down to much less noise
        assert ends[4 if stochastic else 3] == pytest.approx(sde.t_end)
    # Who asks for a time, or for the noise that belongs to it, gets it.
    assert DPMSolver(5, t_end=0.002)._points(sde, 4)[-1].t == 0.002
    assert DPMSolver(5, denoise_final=False)._points(sde, 5)[-1].t == sde.t_end


def test_default_grid():
    sde = VPSDE()
    for order, grid in ((1, "asinh"), (2, "asinh"), (3, "log_snr")):
        for stochastic in (False, True):
            solver = DPMSolver(30, order, stochastic)
            assert solver._points(sde, 29) == schedule(sde, grid, 29, None)
    assert schedule(ReciprocalVESDE(), None, 7, None) == schedule(
        ReciprocalVESDE(), "reciprocal", 7, None
    )
    assert schedule(VPSDE(), None, 7, None) == schedule(VPSDE(), "uniform", 7, None)


def test_images_and_an_empty_batch_pass_through():
    truth = gaussian(VPSDE(), 4)
    picture = type(truth)(truth.sde, truth.mean.reshape(1, 2, 2), truth.std.reshape(1, 2, 2))
    for sampler in SHORT.values():
        assert sampler.sample(picture, (3, 1, 2, 2), seeds=[1, 2, 3]).x.shape == (3, 1, 2, 2)
        assert sampler.sample(picture, (0, 1, 2, 2), seeds=[]).x.shape == (0, 1, 2, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DPMSolver(steps=0), "steps=0"),
        (lambda: DPMSolver(order=4), "write 1, 2 or 3"),
        (lambda: DPMSolver(grid="karras"), "uniform, reciprocal"),
        (lambda: PredictorCorrector(snr=0.0), "snr=0"),
        (lambda: PredictorCorrector(corrector_steps=-1), "corrector_steps=-1"),
        (lambda: PredictorCorrector(predictor="euler"), "reverse_diffusion, ancestral"),
        (lambda: Heun(churn=-1.0), "churn >= 0"),
        (lambda: ProbabilityFlow(rtol=0.0), "must be positive"),
    ],
)
def test_options_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_no_upper_bound_of_the_churn_is_infinity():
    assert Heun(churn_range=(1.0, None)) == Heun(churn_range=(1.0, math.inf))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("sampler", "shape", "options", "words"),
    [
        (DPMSolver(), (3,), {}, "batch"),
        (DPMSolver(), (3, 2), {"seeds": [1, 2]}, "2 seeds for a batch of 3"),
        (DPMSolver(), (1, 2), {"seeds": [1], "generator": generator()}, "exclude"),
        (DPMSolver(), (3, 2), {"x_init": torch.zeros(3, 1)}, "x_init"),
        (DPMSolver(), (3, 2), {"dtype": torch.float16}, "float32"),
        (DPMSolver(t_end=1.0), (3, 2), {}, "t_end=1.0"),
        (ProbabilityFlow(t_end=0.0), (3, 2), {}, "t_end=0.0"),
        (ProbabilityFlow(), (3, 2), {"constraint": lambda x, *_: x}, "cannot hold values in place"),
    ],
)
def test_calls_that_make_no_sense_are_refused(sampler, shape, options, words):
    with pytest.raises(ValueError, match=words):
        sampler.sample(mixture(VPSDE()), shape, **options)


def test_the_flow_names_the_time_at_which_a_score_breaks():
    model = gaussian(VPSDE(), 2)

    def broken(x, t):
        return torch.where(t[:, None] < 0.5, torch.nan, model.score(x, t))

    with pytest.raises(FloatingPointError, match=r"not finite near t = 0\.[5-9]"):
        ProbabilityFlow().sample(model, (2, 2), generator=generator(), score_fn=broken)
    with pytest.raises(FloatingPointError, match="3 steps were not enough"):
        ProbabilityFlow(max_steps=3).sample(model, (2, 2), generator=generator())


def test_noise_with_seeds_is_each_samples_own():
    z = Noise(3, [7, 8, 9], None).draw((3, 4), torch.device("cpu"), torch.float32)
    again = Noise(1, [8], None).draw((1, 4), torch.device("cpu"), torch.float32)
    assert torch.equal(z[1:2], again)
