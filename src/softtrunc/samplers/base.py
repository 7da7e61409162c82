"""The one loop that every fixed-step sampler runs in, and what all samplers share.

A sampler is a frozen set of options. `sample` sets up a `Call` (the counted score, the noise, the
hooks) and walks; a step is a function of an explicit state and two points of the schedule.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softtrunc.noise import Noise
from softtrunc.samplers.grids import Grid, Point, check_grid, schedule
from softtrunc.samplers.precision import AutocastModel
from softtrunc.score import ScoreFunction, rows_of, score_at, tweedie
from softtrunc.sde import SDE


class Samples(NamedTuple):
    """What a sampler returns: `x` of shape `(B, *event)` and the number of network calls.

    `nfe` counts calls for the whole batch. Where examples take steps of their own it is that of
    the example which needed the most.
    """

    x: Float[Tensor, " b *event"]
    nfe: int


class Step(NamedTuple):
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


Callback = Callable[[Step], None]
"""Called after every step."""

ScoreHook = Callable[[Tensor, Tensor], Tensor]
"""`(x (B, *event), t (B,)) -> score (B, *event)`, used in place of the model's own.

`ProbabilityFlow` calls it with the part of the batch that is still under way. A hook that holds
something for each example answers `rows(index)` with one that holds it for those.
"""

Constraint = Callable[[Tensor, Point | None, Noise], Tensor]
"""`(x, where, noise) -> x`, applied after every step; `where` is None when noise is all gone."""


class SampleOptions(TypedDict, total=False):
    """What `Sampler.sample` may be told by those who call it for the user."""

    seeds: Sequence[int] | None
    generator: torch.Generator | None
    score_fn: ScoreHook | None
    callback: Callback | None


@dataclass
class Call:
    """One call of `sample`: the model, the noise, the hooks and the count of network calls."""

    model: ScoreFunction
    batch: int
    noise: Noise
    score_fn: ScoreHook | None = None
    callback: Callback | None = None
    constraint: Constraint | None = None
    nfe: int = 0
    reports: int = 0
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of every network call its times, and whether all of its answer was finite."""

    @property
    def sde(self) -> SDE:
        """The forward diffusion."""
        return self.model.sde

    def score(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None) -> Tensor:
        """The score at one time for all, or `(B,)` times, in the precision of `x`.

        `rows` are the examples' places in the batch, where `x` holds a part of it.
        """
        self.nfe += 1
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(t, Tensor):
            hook = self._hook(rows)
        else:
            hook = self._hook_at(t)
            t = torch.full((x.shape[0],), t, device=x.device, dtype=dtype)
        found = hook(x, t.to(dtype)).to(x.dtype)
        self.asked.append((t, torch.isfinite(found).all()))
        return found

    def _hook_at(self, t: float) -> ScoreHook:
        """What is asked for the score of the whole batch at this time."""
        hook = self.score_fn
        if hook is None:
            return score_at(self.model, t).score
        return hook.at(t) if isinstance(hook, AutocastModel) else hook

    def _hook(self, rows: Tensor | None) -> ScoreHook:
        """What is asked for the score of these examples, None: of all."""
        own, model, hook = self.model, self.model, self.score_fn
        if rows is not None:
            model = rows_of(own, rows, self.batch)
        if hook is None:
            return model.score
        part_of = getattr(hook, "rows", None)
        if rows is not None and part_of is not None:
            part: ScoreHook = part_of(rows)
            return part
        if model is not own:
            raise ValueError(
                "score_fn: this sampler asks for parts of the batch, and the model holds something "
                "for each example: give score_fn a method rows(index), or use a fixed-step sampler"
            )
        return hook

    def finished(self, x: Tensor) -> Samples:
        """The samples, none of which may hold a value that is not finite.

        Raises:
            FloatingPointError: how many do, and at which call and time it began.
        """
        good = torch.isfinite(x).flatten(1).all(1)
        if bool(good.all()):
            return Samples(x, self.nfe)
        calls = enumerate(self.asked, start=1)
        where = "the network's answers are finite, the state is not"
        for number, (t, finite) in calls:
            if not bool(finite):
                where = f"first at t = {float(t.max()):.3g}, network call {number} of {self.nfe}"
                break
        raise FloatingPointError(
            f"{int((~good).sum())} of {len(x)} samples are not finite ({where}): look at the "
            "weights; where the network runs in fp16, try bf16; else a larger t_end or more steps"
        )

    def denoise(self, x: Tensor, at: Point) -> Tensor:
        """`E[x_0 | x_t = x]`."""
        return tweedie(x, self.score(x, at.t), at.alpha, at.sigma)

    def report(self, fraction: float, t: float, x: Tensor, denoised: Tensor) -> None:
        """Tell the callback, where there is one, of a finished step."""
        if self.callback is not None:
            self.callback(Step(self.reports, fraction, t, x, denoised))
            self.reports += 1


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

    @torch.no_grad()
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
        constraint: Constraint | None = None,
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
            callback: called with a `Step` after every step.
            constraint: see `Constraint`; for fixed-step samplers only.

        Raises:
            ValueError: if shape, seeds, x_init or an option of the sampler is out of what is
                allowed.
            FloatingPointError: if a sample is not finite.
        """
        if constraint is not None and not isinstance(self, FixedStepSampler):
            raise ValueError(
                f"{type(self).__name__} cannot hold values in place: use a fixed-step sampler, "
                "e.g. PredictorCorrector()"
            )
        noise = Noise(shape[0] if len(shape) else 0, seeds, generator)
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
        call = Call(model, len(x), noise, score_fn, callback, constraint)
        with evaluation_mode(model):
            x = self._solve(call, x)
        return call.finished(x)

    def check(self, sde: SDE) -> None:  # noqa: B027  (nothing to refuse unless a sampler says so)
        """Refuse an SDE on which these options make no sense, before anything is computed.

        Raises:
            ValueError: saying which option.
        """

    @abc.abstractmethod
    def _solve(self, call: Call, x: Tensor) -> Tensor:
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
        grid: the spacing of the times; None takes the SDE's own (`sde.default_grid`: 1/t for RVE,
            t for the others).

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

    def check(self, sde: SDE) -> None:
        """Refuse times that do not go down from T, step by step, with a ValueError."""
        self._points(sde, self._moves)

    @property
    def _moves(self) -> int:
        """The steps without the final denoising."""
        return self.steps - 1 if self.denoise_final else self.steps

    def _solve(self, call: Call, x: Tensor) -> Tensor:
        moves = self._moves
        points = self._points(call.sde, moves)
        state = State(x)
        for i in range(moves):
            state = self._step(call, state, points[i], points[i + 1])
            state = self._finish_step(call, state, i, points[i + 1])
        if self.denoise_final:
            state = self._last_step(call, state, points[-1])
            state = self._finish_step(call, state, moves, None)
        return state.x

    def _points(self, sde: SDE, moves: int) -> tuple[Point, ...]:
        """The ends of `moves` steps."""
        return schedule(sde, self.grid, moves, self.t_end)

    @abc.abstractmethod
    def _step(self, call: Call, state: State, here: Point, there: Point) -> State:
        """One step of the method from one point of the schedule to the next."""

    def _last_step(self, call: Call, state: State, here: Point) -> State:
        """From `t_end` to no noise: every method's step to sigma = 0 is Tweedie's formula."""
        denoised = call.denoise(state.x, here)
        return State(denoised, denoised)

    def _finish_step(self, call: Call, state: State, index: int, there: Point | None) -> State:
        """Apply the constraint and report; `there` is None when the noise is all gone."""
        if call.constraint is not None:
            state = state._replace(x=call.constraint(state.x, there, call.noise))
        if state.denoised is not None:
            t = 0.0 if there is None else there.t
            call.report((index + 1) / self.steps, t, state.x, state.denoised)
        return state
