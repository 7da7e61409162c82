"""The one loop that every fixed-step sampler runs in, and what all samplers share.

A sampler is a frozen set of options. `sample` sets up a `Run` (the counted score, the noise, the
hooks) and walks; a step is a function of an explicit state and two points of the schedule.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.flow.rows import rows_of
from softtrunc.noise import Noise
from softtrunc.samplers.grids import Grid, Point, check_grid, schedule
from softtrunc.score import ScoreFunction
from softtrunc.sde import SDE

__all__ = [
    "Callback",
    "Constraint",
    "FixedStepSampler",
    "Progress",
    "Run",
    "Sampler",
    "Samples",
    "ScoreHook",
    "State",
    "check_state",
    "evaluation_mode",
    "tweedie",
]


class Samples(NamedTuple):
    """What a sampler returns: `x` of shape `(B, *event)` and the number of network calls.

    `nfe` counts calls for the whole batch. Where examples take steps of their own it is that of
    the example which needed the most.
    """

    x: Float[Tensor, " b *event"]
    nfe: int


class Progress(NamedTuple):
    """One finished step, as a callback sees it.

    `step` counts from 0; `fraction` of the way is done, 1 after the last step; `t` is the time
    reached (0 after the final denoising; the largest where examples differ); `x` is the state
    there and `denoised` the estimate of `E[x_0 | x_t]` that the step was taken with, both
    `(B, *event)`. The tensors are the sampler's own: clone what is to be changed.
    """

    step: int
    fraction: float
    t: float
    x: Tensor
    denoised: Tensor


Callback = Callable[[Progress], None]

ScoreHook = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, *event), t (B,)) -> score (B, *event)`, used in place of the model's own."""


Constraint = Callable[[Tensor, Point | None, Noise], Tensor]
"""`(x, where, noise) -> x`, applied after every step; `where` is None when noise is all gone."""


@dataclass
class Run:
    """One call of `sample`: the model, the noise, the hooks and the count of network calls."""

    sde: SDE
    score_fn: ScoreHook
    noise: Noise
    callback: Callback | None = None
    constraint: Constraint | None = None
    nfe: int = 0
    reports: int = 0
    model: ScoreFunction | None = None
    """Whose score that is, where no hook stands in for it."""

    def score(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None) -> Tensor:
        """The score at one time for all, or `(B,)` times, in the precision of `x`.

        `rows` are the examples' places in the batch, where `x` holds a part of it.
        """
        self.nfe += 1
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(t, Tensor):
            t = t.to(dtype)
        else:
            t = torch.full((x.shape[0],), t, device=x.device, dtype=dtype)
        part = None if rows is None or self.model is None else rows_of(self.model, rows)
        return (self.score_fn if part is None else part.score)(x, t).to(x.dtype)

    def denoise(self, x: Tensor, at: Point) -> Tensor:
        """`E[x_0 | x_t = x]` by Tweedie's formula."""
        return tweedie(x, self.score(x, at.t), at)

    def report(self, fraction: float, t: float, x: Tensor, denoised: Tensor) -> None:
        """Tell the callback, where there is one, of a finished step."""
        if self.callback is not None:
            self.callback(Progress(self.reports, fraction, t, x, denoised))
            self.reports += 1


def tweedie(x: Tensor, score: Tensor, at: Point) -> Tensor:
    """`(x + sigma^2 score) / alpha`."""
    return (x + at.sigma**2 * score) / at.alpha


class State(NamedTuple):
    """All that a step hands to the next.

    `x` is the state, `denoised` the estimate of `E[x_0 | x_t]` at the step's start (None before
    the first), `history` the earlier estimates with their points, newest first, for multistep
    methods.
    """

    x: Tensor
    denoised: Tensor | None = None
    history: tuple[tuple[Point, Tensor], ...] = ()


@contextmanager
def evaluation_mode(model: ScoreFunction) -> Iterator[None]:
    """Dropout off while sampling; every submodule gets its own mode back."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_state(shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a state without an event or in less than single precision."""
    if len(shape) < 2:
        raise ValueError(f"shape {tuple(shape)}: write (batch, *event), e.g. (16, 3, 32, 32)")
    if not dtype.is_floating_point or dtype.itemsize < 4:
        raise ValueError(f"dtype {dtype}: the state needs torch.float32 or torch.float64")


def _device_of(model: ScoreFunction) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


class Sampler(abc.ABC):
    """Base of all samplers: `sample` is the same everywhere, `_solve` is the method."""

    def sample(
        self,
        model: ScoreFunction,
        shape: Sequence[int],
        *,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        x_init: Float[Tensor, " b *event"] | None = None,
        score_fn: ScoreHook | None = None,
        callback: Callback | None = None,
    ) -> Samples:
        """Draw samples by running the diffusion backwards from T.

        A model that is a module is in evaluation mode meanwhile. No gradients are recorded.

        Args:
            model: anything with `.sde` and `.score(x, t)`.
            shape: `(B, *event)`.
            seeds: B integers; sample i is then a function of `seeds[i]` alone, whatever the batch
                (up to how the network itself rounds in batches of different sizes).
            generator: source of randomness where there are no seeds; None takes the default one.
            device: where to compute; None takes the model's device.
            dtype: precision of the state; the network may run in a lower one of its own.
            x_init: the start x_T instead of a draw from the prior, of the given shape.
            score_fn: called in place of `model.score`, with x `(B, *event)` and t `(B,)`: the hook
                for guidance and inverse problems. Where it differentiates, it enables gradients
                itself (`torch.enable_grad()`).
            callback: called with a `Progress` after every step.

        Raises:
            ValueError: if shape, seeds, x_init or an option of the sampler is out of what is
                allowed.
        """
        return self._draw(
            model,
            shape,
            Noise(shape[0] if len(shape) else 0, seeds, generator),
            device=device,
            dtype=dtype,
            x_init=x_init,
            score_fn=score_fn,
            callback=callback,
        )

    @torch.no_grad()
    def _draw(
        self,
        model: ScoreFunction,
        shape: Sequence[int],
        noise: Noise,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        x_init: Tensor | None = None,
        score_fn: ScoreHook | None = None,
        callback: Callback | None = None,
        constraint: Constraint | None = None,
    ) -> Samples:
        """`sample` with the noise made and, for conditional sampling, a constraint."""
        check_state(shape, dtype)
        device = _device_of(model) if device is None else torch.device(device)
        if x_init is None:
            x = model.sde.prior_std * noise.draw(shape, device, dtype)
        elif tuple(x_init.shape) == tuple(shape):
            x = x_init.to(device=device, dtype=dtype)
        else:
            raise ValueError(
                f"x_init has shape {tuple(x_init.shape)}, the samples {tuple(shape)}: "
                "both must be the same"
            )
        run = Run(model.sde, score_fn or model.score, noise, callback, constraint)
        run.model = model if score_fn is None else None
        with evaluation_mode(model):
            x = self._solve(run, x)
        return Samples(x, run.nfe)

    @abc.abstractmethod
    def _solve(self, run: Run, x: Tensor) -> Tensor:
        """Carry x_T to the samples."""


@dataclass(frozen=True)
class FixedStepSampler(Sampler):
    """Base of the samplers whose times are known before they start.

    Args:
        steps: number of steps, >= 1, the final denoising included.
        t_end: the smallest time at which the score is asked for, in (0, T); None takes the SDE's
            own (`sde.t_end`: 1e-3 for VP and sub-VP, 1e-5 for VE, eps for RVE).
        denoise_final: True (the default): the last of the steps goes from `t_end` to no noise at
            all by Tweedie's formula. False: the last step ends at `t_end`, with the noise that
            belongs there.
        grid: the spacing of the times; None takes 1/t for RVE and t for the others.

    Raises:
        ValueError: if an option is out of range.
    """

    steps: int
    _: KW_ONLY
    t_end: float | None = None
    denoise_final: bool = True
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__}: steps={self.steps}: need at least 1")
        check_grid(self.grid)

    def _solve(self, run: Run, x: Tensor) -> Tensor:
        moves = self.steps - 1 if self.denoise_final else self.steps
        points = self._points(run.sde, moves)
        state = State(x)
        for i in range(moves):
            state = self._step(run, state, points[i], points[i + 1])
            state = self._finish_step(run, state, i, points[i + 1])
        if self.denoise_final:
            state = self._last_step(run, state, points[-1])
            state = self._finish_step(run, state, moves, None)
        return state.x

    def _points(self, sde: SDE, moves: int) -> tuple[Point, ...]:
        """The ends of `moves` steps."""
        return schedule(sde, self.grid, moves, self.t_end)

    @abc.abstractmethod
    def _step(self, run: Run, state: State, here: Point, there: Point) -> State:
        """One step of the method from one point of the schedule to the next."""

    def _last_step(self, run: Run, state: State, here: Point) -> State:
        """From `t_end` to no noise: every method's step to sigma = 0 is Tweedie's formula."""
        denoised = run.denoise(state.x, here)
        return State(denoised, denoised)

    def _finish_step(self, run: Run, state: State, index: int, there: Point | None) -> State:
        """Apply the constraint and report; `there` is None when the noise is all gone."""
        if run.constraint is not None:
            state = state._replace(x=run.constraint(state.x, there, run.noise))
        if state.denoised is not None:
            t = 0.0 if there is None else there.t
            run.report((index + 1) / self.steps, t, state.x, state.denoised)
        return state
