"""Half precision of the network alone, and the recorder of trajectories."""

from __future__ import annotations

import pytest
import torch
from sampler_cases import gaussian, generator, mixture
from torch import nn

from softtrunc.samplers import (
    DPMSolver,
    PredictorCorrector,
    ProbabilityFlow,
    Trajectory,
    autocast_score,
    colorize,
    encode,
    inpaint,
)
from softtrunc.score import ScoreModel
from softtrunc.sde import VESDE, VPSDE


class Convolutions(nn.Module):
    """A small network that remembers in which precisions it computed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.last = nn.Conv2d(8, 3, 3, padding=1)
        self.inside: set[torch.dtype] = set()
        self.given: set[torch.dtype] = set()

    def forward(self, x, label):
        self.given.add(x.dtype)
        h = self.first(x)
        self.inside.add(h.dtype)
        return self.last(torch.tanh(h)) + 0.0 * label[:, None, None, None]


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_network_alone_runs_in_half_precision(sde, dtype):
    model = ScoreModel(Convolutions(), sde)
    seen = []

    def half(x, t):
        seen.append((x.dtype, t.dtype))
        return autocast_score(model, dtype)(x, t)

    sampler, shape = DPMSolver(steps=8), (2, 3, 4, 4)
    full = sampler.sample(model, shape, seeds=[1, 2]).x
    assert model.network.inside == {torch.float32}
    model.network.inside.clear()
    low = sampler.sample(model, shape, seeds=[1, 2], score_fn=half).x
    assert model.network.inside == {dtype}
    assert model.network.given == {torch.float32}
    assert low.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32)}
    # The network's error, 2^-8 or 2^-11 relative, and no more: a state in half precision would
    # lose the small noise at the end of VE's way below a prior of 50.
    assert not torch.equal(low, full)
    size = {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    assert (low - full).abs().max() < size * max(1.0, float(full.abs().max()))


def test_half_precision_reaches_edits_and_the_flow():
    model = ScoreModel(Convolutions(), VPSDE())
    score, x = autocast_score(model), torch.zeros(1, 3, 4, 4)
    mask = torch.tensor([True, False, False, True])
    flow = ProbabilityFlow(rtol=1e-2, atol=1e-2)
    for work in (
        lambda: inpaint(DPMSolver(steps=2), model, x, mask, seeds=[0], score_fn=score),
        lambda: colorize(DPMSolver(steps=2), model, x[:, :1], seeds=[0], score_fn=score),
        lambda: encode(model, x, flow=flow, score_fn=score),
    ):
        model.network.inside.clear()
        assert work().x.dtype == torch.float32
        assert model.network.inside == {torch.bfloat16}


@pytest.mark.usefixtures("unchecked")
def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match=r"torch\.bfloat16 or torch\.float16"):
        autocast_score(gaussian(VPSDE(), 2), torch.float32)
    with pytest.raises(ValueError, match="at least 2"):
        Trajectory(1)


@pytest.mark.parametrize(
    ("steps", "frames", "kept"), [(100, 6, 6), (7, 7, 7), (5, 12, 5), (2, 2, 2), (1, 4, 1)]
)
def test_a_trajectory_keeps_even_shares_of_the_way(steps, frames, kept):
    recorder = Trajectory(frames)
    model = mixture(VPSDE())
    drawn = PredictorCorrector(steps).sample(
        model, (3, 2), generator=generator(), callback=recorder
    )
    assert len(recorder.times) == kept
    assert recorder.x.shape == recorder.denoised.shape == (kept, 3, 2)
    assert torch.equal(recorder.x[-1], drawn.x)
    assert recorder.times[-1] == 0.0
    assert recorder.times == sorted(recorder.times, reverse=True)
    if kept == frames and steps > frames:
        # The grid is uniform in t: so are the frames, to a step; the first is the first step.
        want = [1 - 1 / steps, *(1 - i / (frames - 1) for i in range(1, frames))]
        assert recorder.times == pytest.approx(want, abs=1.01 / steps)


def test_a_trajectory_can_be_used_again_and_keeps_copies():
    recorder = Trajectory(3)
    model = mixture(VPSDE())
    for seed in (1, 2):
        PredictorCorrector(20).sample(model, (1, 2), seeds=[seed], callback=recorder)
    assert len(recorder.times) == 3
    assert not torch.equal(recorder.x[0], recorder.x[1])
