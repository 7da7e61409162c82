"""An SDE of somebody else's is one class: VP and VE rewritten as such give what ours give."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from exact import Gaussian
from torch import Tensor, nn

from softtrunc import (
    SDE,
    VESDE,
    VPSDE,
    ImportanceTimes,
    PowerPrior,
    ScoreModel,
    SoftTruncationLoss,
    likelihood_weight,
)
from softtrunc.density import nelbo, probability_flow_nll
from softtrunc.interop import choose_conditioning, noise_levels
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    encode,
    inpaint,
)


@dataclass(frozen=True)
class TheirVP(SDE):
    """beta from 0.1 to 20, from the five members that nothing else can answer."""

    beta: tuple[float, float] = (0.1, 20.0)

    @property
    def prior_std(self) -> float:
        return 1.0

    def _decay(self, t: Tensor) -> Tensor:
        low, high = self.beta
        return low * t + 0.5 * (high - low) * t**2

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        decay = self._decay(t)
        return -decay / 2, (-torch.expm1(-decay)).log() / 2

    def _drift(self, t: Tensor) -> Tensor:
        return -self._diffusion_squared(t) / 2

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        low, high = self.beta
        return low + (high - low) * t

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        (low, high), decay = self.beta, torch.nn.functional.softplus(-log_snr)
        return 2 * decay / (low + (low**2 + 2 * (high - low) * decay).sqrt())


@dataclass(frozen=True)
class TheirVE(SDE):
    """sigma from 0.01 to 50."""

    low: float = 0.01
    high: float = 50.0

    @property
    def prior_std(self) -> float:
        return self.high

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_sigma = (1 - t) * math.log(self.low) + t * math.log(self.high)
        return torch.zeros_like(t), log_sigma

    def _drift(self, t: Tensor) -> Tensor:
        return 0 * t

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        return 2 * math.log(self.high / self.low) * (2 * self._log_alpha_sigma(t)[1]).exp()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - math.log(self.low)) / math.log(self.high / self.low)


pairs = pytest.mark.parametrize(
    ("theirs", "ours"), [(TheirVP(), VPSDE()), (TheirVE(), VESDE())], ids=["vp", "ve"]
)

SAMPLERS: list[Sampler] = [
    Ancestral(20),
    EulerMaruyama(20),
    *(PredictorCorrector(10, predictor=p) for p in ("reverse_diffusion", "ancestral")),
    PredictorCorrector(10, predictor="euler_maruyama"),
    *(DPMSolver(10, order=k, stochastic=s) for k in (1, 2, 3) for s in (False, True)),
    Heun(8),
    Heun(8, churn=4.0),
    ProbabilityFlow(rtol=1e-4, atol=1e-4),
]


def truth(sde: SDE) -> Gaussian:
    mean = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    return Gaussian(sde, mean, torch.full((4,), 0.5, dtype=torch.float64))


def data() -> Tensor:
    return truth(VPSDE()).sample(6, generator=torch.Generator().manual_seed(0))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pairs
def test_every_default_is_that_of_its_like(theirs, ours):
    for name in (
        "t_max",
        "t_end",
        "prior_std",
        "exploding",
        "default_grid",
        "conditionings",
        "default_prediction",
        "default_value_range",
        "ancestral_variance",
    ):
        assert getattr(theirs, name) == getattr(ours, name), name


@pairs
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_sampler_draws_the_same(sampler, theirs, ours):
    drawn = [
        sampler.sample(truth(sde), (6, 4), seeds=range(6), dtype=torch.float64)
        for sde in (theirs, ours)
    ]
    same(drawn[0].x, drawn[1].x)
    assert drawn[0].nfe == drawn[1].nfe


@pairs
def test_codes_and_edits_are_the_same(theirs, ours):
    x, mask = data(), torch.tensor([True, False, False, True])
    flow = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    same(*(encode(truth(sde), x, flow=flow).x for sde in (theirs, ours)))
    same(*(inpaint(Ancestral(10), truth(sde), x, mask, seeds=range(6)).x for sde in (theirs, ours)))


@pairs
def test_both_densities_are_the_same(theirs, ours):
    for measure, options in (
        (probability_flow_nll, {"rtol": 1e-4, "atol": 1e-4, "divergence": "exact"}),
        (nelbo, {"draws": 8}),
    ):
        values = [
            measure(truth(sde), data(), generator=torch.Generator().manual_seed(1), **options)
            for sde in (theirs, ours)
        ]
        same(values[0].nats, values[1].nats)


class Body(nn.Module):
    """A network that mixes input and label."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4, dtype=torch.float64)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-0.5, 0.5, 16).reshape(4, 4))
            self.mix.bias.fill_(0.1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.mix(x) + 1e-3 * label[:, None])


@pairs
@pytest.mark.parametrize("index", [None, 0, 1])
def test_a_score_model_and_its_loss_are_the_same(theirs, ours, index):
    x, t = data(), torch.linspace(1e-5, 1.0, 6, dtype=torch.float64)
    scores, losses = [], []
    for sde in (theirs, ours):
        label = None if index is None else sde.conditionings[index]
        model = ScoreModel(Body(), sde, conditioning=label)
        scores.append(model.score(x, t) * sde.marginal(t).sigma[:, None])
        loss = SoftTruncationLoss(
            sde, PowerPrior(1.0), ImportanceTimes(sde), likelihood_weight(sde)
        )
        losses.append(loss(model, x, generator=torch.Generator().manual_seed(2)).loss)
    same(*scores)
    same(*losses)


def test_a_label_that_does_not_fit_is_refused():
    ScoreModel(Body(), TheirVP(), conditioning="unbounded_time")
    with pytest.raises(ValueError, match="needs a VP or sub-VP SDE, not TheirVE"):
        ScoreModel(Body(), TheirVE(), conditioning="unbounded_time")


@pairs
def test_other_libraries_are_served_the_same(theirs, ours):
    ratios, errors = [], []
    for sde in (theirs, ours):
        ratios.append(noise_levels(sde, (-1.0, 1.0)).ratios)
        models = {c: ScoreModel(Body(), sde, conditioning=c) for c in sde.conditionings}
        choice = choose_conditioning(models, data(), generator=torch.Generator().manual_seed(0))
        errors.append(torch.tensor(list(choice.errors.values())))
    same(*ratios)
    same(*errors)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sde", [TheirVP((0.2, 15.0)), TheirVE(0.02, 30.0)], ids=["vp", "ve"])
def test_it_is_saved_by_its_import_path_and_loaded_with_the_class_given(tmp_path, sde):
    model = ScoreModel(Body(), sde).eval()
    model.save_pretrained(tmp_path)
    cls = type(sde)
    saved = json.loads((tmp_path / "config.json").read_text())["sde"]
    assert saved["type"] == f"{cls.__module__}:{cls.__name__}"
    again = ScoreModel.from_pretrained(tmp_path, network=Body(), sde=cls)
    assert again.sde == sde
    assert hash(again.sde) == hash(sde)
    x, t = data(), torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(model.score(x, t), again.score(x, t))
    with pytest.raises(
        ValueError, match=f"{cls.__name__}': this version knows VPSDE.*sde={cls.__name__}"
    ):
        ScoreModel.from_pretrained(tmp_path, network=Body())
    with pytest.raises(ValueError, match=f"not VPSDE; give the class as sde={cls.__name__}"):
        ScoreModel.from_pretrained(tmp_path, network=Body(), sde=VPSDE)


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_imported_because_a_file_names_it(tmp_path):
    ScoreModel(Body(), TheirVP()).save_pretrained(tmp_path)
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    config = json.loads((tmp_path / "config.json").read_text())
    config["sde"]["type"] = "trap:TheirVP"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="give the class as sde=TheirVP"):
        ScoreModel.from_pretrained(tmp_path, network=Body())
    assert ScoreModel.from_pretrained(tmp_path, network=Body(), sde=TheirVP).sde == TheirVP()


@pytest.mark.usefixtures("unchecked")
def test_what_json_does_not_hold_is_refused_before_anything_is_written(tmp_path):
    @dataclass(frozen=True, eq=False)
    class Learned(TheirVP):
        rate: Tensor | None = None

    with pytest.raises(ValueError, match=r"Learned cannot be saved: .*Tensor"):
        ScoreModel(Body(), Learned(rate=torch.ones(1))).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
