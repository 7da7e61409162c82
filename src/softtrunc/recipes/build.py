"""From a recipe to objects: the only place where names become things."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import assert_never

import torch

from softtrunc.data import ImageDataset, find_preset, open_dataset
from softtrunc.feedback.errors import UserError, missing_packages, user_errors
from softtrunc.feedback.progress import Progress, Task
from softtrunc.networks import ScoreUNet, ScoreUNetConfig, preset
from softtrunc.objective import MixedLoss, Objective, RunningErrorLoss, SoftTruncationLoss
from softtrunc.recipes import schema
from softtrunc.samplers import (
    Ancestral,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    ScoreHook,
    autocast_score,
)
from softtrunc.score import ScoreModel
from softtrunc.sde import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE
from softtrunc.times import ImportanceTimes, LogSNRTimes, ProportionalTimes, TimeLaw, UniformTimes
from softtrunc.training import TrainingConfig
from softtrunc.truncation import (
    HardTruncation,
    PowerPrior,
    TruncationPrior,
    WeightPrior,
)
from softtrunc.weighting import (
    PriorWeight,
    SigmoidWeight,
    Weighting,
    likelihood_weight,
    variance_weight,
)

__all__ = [
    "build_data",
    "build_model",
    "build_network_config",
    "build_objective",
    "build_prior",
    "build_sampler",
    "build_score",
    "build_sde",
    "build_training",
    "what_to_give",
]

# Image files that decode to more bytes than this are to be prepared once, not at every start.
_LARGEST_UNPREPARED = 4 << 30


def build_sde(recipe: schema.Recipe) -> SDE:
    """The forward diffusion."""
    with user_errors("sde"):
        match recipe.sde:
            case schema.VP(beta_min=low, beta_max=high):
                return VPSDE(low, high)
            case schema.SubVP(beta_min=low, beta_max=high):
                return SubVPSDE(low, high)
            case schema.VE(sigma_min=low, sigma_max=high):
                return VESDE(low, high)
            case schema.ReciprocalVE(sigma_min=low, sigma_max=high, eps=eps):
                return ReciprocalVESDE(low, high, eps)
            case _ as unreachable:
                assert_never(unreachable)


def build_prior(recipe: schema.Recipe) -> TruncationPrior:
    """The law of the truncation time."""
    spec = recipe.truncation
    with user_errors("truncation"):
        if spec.sigmoid is not None:
            sde = build_sde(recipe)
            wanted, given = SigmoidWeight(sde, spec.sigmoid), likelihood_weight(sde)
            return WeightPrior(wanted, given, spec.eps, spec.tau_max)
        if spec.hard:
            return HardTruncation(spec.eps)
        return PowerPrior(spec.k, spec.eps, spec.tau_max)


def build_objective(recipe: schema.Recipe) -> Objective:
    """The loss."""
    spec, sde, prior = recipe.objective, build_sde(recipe), build_prior(recipe)
    even = recipe.training.seed if recipe.truncation.sequence == "low_discrepancy" else None
    laws: dict[str, TimeLaw] = {
        "importance": ImportanceTimes(sde, stratified=spec.stratified),
        "uniform": UniformTimes(sde, stratified=spec.stratified, average=spec.average),
        "log_snr": LogSNRTimes(sde, stratified=spec.stratified, average=spec.average),
    }

    def loss(times: TimeLaw, weight: Weighting, prior: TruncationPrior) -> SoftTruncationLoss:
        per = recipe.truncation.per
        return SoftTruncationLoss(sde, prior, times, weight, spec.reduction, per, even)

    with user_errors("objective"):
        if spec.weighting == "mixed":
            return MixedLoss(
                loss(laws["importance"], likelihood_weight(sde), prior),
                loss(laws["uniform"], variance_weight(sde), prior),
                coefficient=spec.mixed.coefficient,
                balanced=spec.mixed.balanced,
            )
        likelihood = spec.weighting == "likelihood"
        weight = likelihood_weight(sde) if likelihood else variance_weight(sde)
        if spec.expected:
            weight, prior = PriorWeight(weight, prior), HardTruncation(prior.eps)
        laws["proportional"] = ProportionalTimes(sde, weight, prior.eps, spec.stratified)
        chosen = loss(laws[spec.times], weight, prior)
        return RunningErrorLoss(chosen, spec.error_power) if spec.error_power else chosen


def build_network_config(
    recipe: schema.Recipe, *, channels: int, image_size: tuple[int, int]
) -> ScoreUNetConfig:
    """The network's configuration for images of this shape."""
    with user_errors(f"network {recipe.network.preset!r}"):
        options = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in recipe.network.options.items()
        }
        return preset(recipe.network.preset, image_size=image_size, channels=channels, **options)


def build_model(recipe: schema.Recipe, *, channels: int, image_size: tuple[int, int]) -> ScoreModel:
    """Network and SDE with the random start that the recipe's seed decides."""
    config = build_network_config(recipe, channels=channels, image_size=image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        network = ScoreUNet(config)
    with user_errors("network"):
        return ScoreModel(network, build_sde(recipe), conditioning=recipe.network.conditioning)


def build_training(recipe: schema.Recipe) -> TrainingConfig:
    """How to optimise."""
    spec = recipe.training
    with user_errors("training"):
        return TrainingConfig(
            batch_size=spec.batch_size,
            micro_batch_size=spec.micro_batch_size,
            learning_rate=spec.learning_rate,
            betas=spec.betas,
            adam_eps=spec.adam_eps,
            weight_decay=spec.weight_decay,
            warmup_steps=spec.warmup_steps,
            grad_clip=spec.grad_clip,
            ema_rate=spec.ema_rate,
            flip=recipe.data.flip,
            dequantize=recipe.data.dequantize,
            seed=spec.seed,
        )


def build_sampler(spec: schema.Sampling) -> Sampler:
    """The sampler of a recipe's `sampling` section."""
    with user_errors("sampling"):
        match spec:
            case schema.PCSampling():
                return PredictorCorrector(
                    steps=spec.steps,
                    snr=spec.snr,
                    corrector_steps=spec.corrector_steps,
                    predictor=spec.predictor,
                    t_end=spec.t_end,
                    denoise_final=spec.denoise_final,
                    grid=spec.grid,
                )
            case schema.EulerMaruyamaSampling() | schema.AncestralSampling():
                method = EulerMaruyama if spec.sampler == "euler_maruyama" else Ancestral
                return method(
                    steps=spec.steps,
                    t_end=spec.t_end,
                    denoise_final=spec.denoise_final,
                    grid=spec.grid,
                )
            case schema.ODESampling():
                return ProbabilityFlow(
                    rtol=spec.rtol,
                    atol=spec.atol,
                    t_end=spec.t_end,
                    denoise_final=spec.denoise_final,
                    max_steps=spec.max_steps,
                )
            case schema.HeunSampling():
                low, high = spec.churn_range
                return Heun(
                    steps=spec.steps,
                    t_end=spec.t_end,
                    denoise_final=spec.denoise_final,
                    grid=spec.grid,
                    churn=spec.churn,
                    churn_range=(low, math.inf if high is None else high),
                    churn_noise=spec.churn_noise,
                )
            case schema.DPMSolverSampling():
                return DPMSolver(
                    steps=spec.steps,
                    order=spec.order,
                    stochastic=spec.stochastic,
                    t_end=spec.t_end,
                    denoise_final=spec.denoise_final,
                    grid=spec.grid,
                )
            case _ as unreachable:
                assert_never(unreachable)


def build_score(spec: schema.Sampling, model: ScoreModel) -> ScoreHook:
    """The model's score in the precision of a recipe's `sampling` section."""
    if spec.precision == "fp32":
        return model.score
    return autocast_score(model, {"bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision])


def build_data(recipe: schema.Recipe, split: str, progress: Progress | None = None) -> ImageDataset:
    """The images of one split ("train" or "test"), with a bar while files are read.

    Raises:
        UserError: if the recipe names no data, or they cannot be read.
    """
    spec = recipe.data
    if spec.source is None:
        raise UserError(f"recipe {recipe.name}: {what_to_give(spec)}")
    with ExitStack() as stack, user_errors("data"), missing_packages():
        return open_dataset(
            spec.source,
            split,
            image_size=spec.image_size,
            channels=spec.channels,
            preset=spec.preset,
            largest=_LARGEST_UNPREPARED,
            progress=_ReadingBar(progress, f"read {split} images", stack) if progress else None,
        )


def what_to_give(spec: schema.Data) -> str:
    """What a recipe without data asks for.

    Raises:
        UserError: if its `data.preset` is unknown.
    """
    if spec.preset is None:
        return "it is for your own images: add --data PATH (a folder of images)"
    with user_errors("data"):
        known = find_preset(spec.preset)
    return (
        f"it is for {known.title}: add --data PATH (the data as released, or what `softtrunc data "
        f"prepare PATH --preset {known.name} --out DIR` wrote)"
    )


class _ReadingBar:
    """A bar that appears with the first file, when it is known how many there are."""

    def __init__(self, progress: Progress, label: str, stack: ExitStack) -> None:
        self._progress = progress
        self._label = label
        self._stack = stack
        self._task: Task | None = None

    def __call__(self, done: int, total: int) -> None:
        """One more file was read."""
        if self._task is None:
            self._task = self._stack.enter_context(
                self._progress.task(self._label, total, done - 1)
            )
        self._task.advance()
