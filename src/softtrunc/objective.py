"""The training loss: denoising score matching on [tau, T], with tau drawn anew every step.

`L(theta; w, tau) = 1/2 * integral over [tau, T] of w(t) E||s_theta - grad log p(x_t|x_0)||^2 dt`
(Kim et al. 2022, arXiv 2106.05527, eq. 9), estimated from one time and one noise per example.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from softtrunc.score import ScoreFunction
from softtrunc.sde import SDE, expand_to, random_normal, widen
from softtrunc.times import TimeLaw
from softtrunc.truncation import TruncationPrior
from softtrunc.weighting import Weighting

Reduction = Literal["mean", "sum"]
"""Over the dimensions of an example: "mean" divides by their number, "sum" does not."""


class StepDraw(NamedTuple):
    """The random times of one optimiser step; a part of the batch takes `part(start, stop)`.

    `tau` `()` stays where it was drawn.
    """

    tau: Float[Tensor, ""]
    t: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def part(self, start: int, stop: int) -> StepDraw:
        """The share of examples `start` to `stop`: the same tau, their own times."""
        return StepDraw(self.tau, self.t[start:stop], self.weight[start:stop])

    def to(self, device: torch.device) -> StepDraw:
        """The times and weights on `device`, in its widest type, sent as one."""
        if self.t.device == device:
            return self
        t, weight = widen(torch.stack([self.t, self.weight]), device)
        return StepDraw(self.tau, t, weight)


class LossTerms(NamedTuple):
    """What a loss says of a batch. `loss.mean()` is what to differentiate.

    - `loss` (B,): estimate of L for each example.
    - `t` (B,): its diffusion time, float64.
    - `tau` (): the truncation time that all share, float64.
    - `error` (B,): `||sigma score + z||^2`, by the same reduction, without any weight.
    """

    loss: Float[Tensor, " b"]
    t: Float[Tensor, " b"]
    tau: Float[Tensor, ""]
    error: Float[Tensor, " b"]


@runtime_checkable
class Objective(Protocol):
    """What a training loop needs of a loss."""

    def draw(
        self,
        n: int,
        *,
        tau: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """The times of one optimiser step over `n` examples."""

    def __call__(
        self,
        model: ScoreFunction,
        x: Tensor,
        *,
        tau: float | Tensor | None = None,
        draw: StepDraw | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """The loss of a batch, with given draws or fresh ones."""


class _DenoisingLoss(Objective):
    """What the losses here share: the error of each example. They differ in what it counts."""

    reduction: Reduction

    @abc.abstractmethod
    def _loss(self, draw: StepDraw, error: Tensor) -> Float[Tensor, " b"]:
        """The loss of examples with these errors."""

    def __call__(
        self,
        model: ScoreFunction,
        x: Float[Tensor, "b *event"],
        *,
        tau: float | Float[Tensor, ""] | None = None,
        draw: StepDraw | None = None,
        noise: Float[Tensor, "b *event"] | None = None,
        generator: torch.Generator | None = None,
    ) -> LossTerms:
        """The loss of a batch.

        Args:
            model: anything with `.sde` and `.score(x, t)`.
            x: clean examples `(B, *event)` in the model's data range.
            tau: the truncation time, if it is not to be drawn.
            draw: the times, if they were drawn for a larger step; then `tau` is not looked at.
            noise: standard normal noise of the shape of `x`, if it is not to be drawn.
            generator: source of what is drawn here.
        """
        _check(model, x)
        if draw is None:
            draw = self.draw(x.shape[0], tau=tau, generator=generator)
        if noise is None:
            noise = random_normal(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        # Sent before the forward pass is queued: after it, the host would wait for all of that.
        draw = draw.to(x.device)
        # sigma score + z is sigma times what the score is off grad log p(x_t | x_0).
        sigma = expand_to(model.sde.marginal(draw.t).sigma, x)
        rest = sigma * model.score(model.sde.perturb(x, draw.t, noise), draw.t) + noise
        squares = rest.square().reshape(x.shape[0], math.prod(x.shape[1:]))
        error = squares.mean(1) if self.reduction == "mean" else squares.sum(1)
        return LossTerms(self._loss(draw, error), draw.t, draw.tau, error)


# Where values were looked at once: on an accelerator that waits for the device.
_LOOKED_AT = {"meta"}


def _check(model: ScoreFunction, x: Tensor) -> None:
    """Refuse what would fail far from here, or train something else in silence."""
    if not hasattr(model, "sde") and hasattr(model, "module"):
        raise TypeError(
            f"the loss was given a model inside {type(model).__name__}, past which gradients would "
            "not be exchanged: wrap softtrunc.training.LossModule(model, loss), and call that"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"x is {x.dtype}: the loss takes floats in the model's range: {_how(model)}"
        )
    if x.device.type not in _LOOKED_AT and x.numel():
        if x.device.type != "cpu":
            _LOOKED_AT.add(x.device.type)
        low, high = torch.stack(x.detach().aminmax()).tolist()
        if low >= 0.0 and _BRIGHT < high <= 255.0 and _range_of(model)[1] <= 1.0:
            raise ValueError(
                f"x holds values from {low:g} to {high:g}, as images of 256 levels "
                f"do: the model's data lie in [{', '.join(f'{v:g}' for v in _range_of(model))}]: "
                f"{_how(model)}"
            )


# Data that lie around 0 with a spread of about 1 have no such values, images of 256 levels do.
_BRIGHT = 32.0


def _range_of(model: ScoreFunction) -> tuple[float, float]:
    found: tuple[float, float] = getattr(model, "value_range", model.sde.default_value_range)
    return found


def _how(model: ScoreFunction) -> str:
    """How 8-bit images get into the model's range."""
    low, high = _range_of(model)
    known = {(-1.0, 1.0): "x / 127.5 - 1", (0.0, 1.0): "x / 255"}
    formula = known.get((low, high), f"x / 255 * {high - low:g} + ({low:g})")
    return f"write {formula} for images of 256 levels"


@dataclass(frozen=True)
class SoftTruncationLoss(_DenoisingLoss):
    """Denoising score matching with a random truncation time.

    One call is one optimiser step: it draws one tau for the whole batch, then a time in [tau, T]
    and a noise for each example. Under gradient accumulation or data parallelism call `draw` once
    for the whole step and hand each part its share.

    Args:
        sde: the forward diffusion.
        prior: the law of tau; `HardTruncation` gives the ordinary loss.
        times: the law of t on [tau, T].
        weighting: the weight w(t) of the squared score error.
        reduction: "mean" divides an example's loss by its number of dimensions, "sum" does not.

    Raises:
        ValueError: if `reduction` is unknown, `times` belongs to another SDE, or eps >= T.
    """

    sde: SDE
    prior: TruncationPrior
    times: TimeLaw
    weighting: Weighting
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if self.reduction not in get_args(Reduction):
            raise ValueError(f'reduction {self.reduction!r} is unknown: write "mean" or "sum"')
        if self.times.sde != self.sde:
            raise ValueError(
                f"times were made for {self.times.sde}, the loss for {self.sde}: give both one SDE"
            )
        if not self.prior.eps < self.sde.t_max:
            raise ValueError(f"prior: eps={self.prior.eps}: need eps < T = {self.sde.t_max}")

    def draw(
        self,
        n: int,
        *,
        tau: float | Float[Tensor, ""] | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """Draw tau (unless given, in (0, T)) and the times of `n` examples, float64.

        Raises:
            ValueError: if a given `tau` is not in (0, T).
        """
        if tau is None:
            tau = self.prior.sample(1, generator=generator)[0]
        elif not 0.0 < float(tau) < self.sde.t_max:
            raise ValueError(f"tau={float(tau)}: need 0 < tau < T = {self.sde.t_max}")
        else:
            tau = torch.tensor(float(tau), dtype=torch.float64)
        t, weight = self.times.draw(n, tau, generator=generator)
        return StepDraw(tau, t, weight)

    def coefficient(self, draw: StepDraw) -> Float[Tensor, " n"]:
        """What multiplies the error of each example: `1/2 weight w(t) / sigma(t)^2`."""
        sigma = self.sde.marginal(draw.t).sigma
        return 0.5 * draw.weight * self.weighting(draw.t) / sigma.square()

    def _loss(self, draw: StepDraw, error: Tensor) -> Float[Tensor, " b"]:
        return self.coefficient(draw).to(error) * error


@dataclass(frozen=True)
class MixedLoss(_DenoisingLoss):
    """Half of the batch for density, half for samples: `L_g2 + c L_sigma2`.

    The objective of the paper's 512-channel CIFAR-10 rows. Examples 0, 2, 4, ... carry the first
    loss, examples 1, 3, 5, ... the second; both halves share tau. The mean of `loss` over the
    batch is the total.

    Args:
        likelihood: the g^2 loss (importance-sampled in the paper).
        variance: the sigma^2 loss (uniform times in the paper).
        coefficient: c, > 0.
        balanced: c is multiplied by the mean ratio of the two losses over neighbouring pairs,
            without gradient, so that c alone says their proportion. Under gradient accumulation
            or data parallelism the mean is taken over each part of the batch.

    Raises:
        ValueError: if c is not positive, or the halves differ in SDE or prior.
    """

    likelihood: SoftTruncationLoss
    variance: SoftTruncationLoss
    coefficient: float
    balanced: bool = False
    reduction: Reduction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.coefficient > 0.0:
            raise ValueError(f"MixedLoss: coefficient={self.coefficient}: need a number > 0")
        if (self.likelihood.sde, self.likelihood.prior) != (self.variance.sde, self.variance.prior):
            raise ValueError("MixedLoss: both halves need the same SDE and the same prior of tau")
        if self.likelihood.reduction != self.variance.reduction:
            raise ValueError("MixedLoss: both halves need the same reduction")
        object.__setattr__(self, "reduction", self.likelihood.reduction)

    def draw(
        self,
        n: int,
        *,
        tau: float | Float[Tensor, ""] | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """Draw one tau and the times of `n` examples, alternating between the two laws.

        Raises:
            ValueError: if `n` is odd.
        """
        self._check_even(n)
        first = self.likelihood.draw(n // 2, tau=tau, generator=generator)
        t, weight = self.variance.times.draw(n // 2, first.tau, generator=generator)
        return StepDraw(
            first.tau,
            torch.stack([first.t, t], dim=1).flatten(),
            torch.stack([first.weight, weight], dim=1).flatten(),
        )

    def _check_even(self, n: int) -> None:
        if n % 2:
            raise ValueError(f"MixedLoss: a batch of {n} has no two halves: use an even batch size")

    def _loss(self, draw: StepDraw, error: Tensor) -> Float[Tensor, " b"]:
        self._check_even(len(error))
        halves = [StepDraw(draw.tau, draw.t[i::2], draw.weight[i::2]) for i in (0, 1)]
        density = self.likelihood._loss(halves[0], error[0::2])
        sample = self.variance._loss(halves[1], error[1::2])
        scale: float | Tensor = self.coefficient
        if self.balanced:
            scale = scale * (density / sample).detach().mean()
        # Twice each half: the mean over the whole batch is then the sum of the halves' means.
        return torch.stack([2.0 * density, 2.0 * scale * sample], dim=1).flatten()
