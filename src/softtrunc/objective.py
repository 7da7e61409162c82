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
from softtrunc.truncation import TruncationPrior, even_quantiles
from softtrunc.weighting import Weighting

Reduction = Literal["mean", "sum"]
"""Over the dimensions of an example: "mean" divides by their number, "sum" does not."""
Per = Literal["step", "example"]
"""What has a truncation time of its own."""


class StepDraw(NamedTuple):
    """The random times of one optimiser step; a part of the batch takes `part(start, stop)`.

    `tau` is `()`, or `(n,)` where each example has its own; it stays where it was drawn.
    """

    tau: Float[Tensor, "*n"]
    t: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]

    def part(self, start: int, stop: int) -> StepDraw:
        """The share of examples `start` to `stop`: the same shared tau, their own times."""
        tau = self.tau[start:stop] if self.tau.ndim else self.tau
        return StepDraw(tau, self.t[start:stop], self.weight[start:stop])

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
    - `tau` (): the truncation time that all share, float64; `(B,)` if each has its own.
    - `error` (B,): `||sigma score + z||^2`, by the same reduction, without any weight.
    """

    loss: Float[Tensor, " b"]
    t: Float[Tensor, " b"]
    tau: Float[Tensor, "*n"]
    error: Float[Tensor, " b"]


@runtime_checkable
class Objective(Protocol):
    """What a training loop needs of a loss."""

    def draw(
        self,
        n: int,
        *,
        tau: float | Tensor | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """The times of the optimiser step number `step` over `n` examples."""

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
        per: "step": one tau for the batch, which is Soft Truncation. "example": one each: the same
            loss in expectation, but no step looks at large times alone.
        even: seed of a sequence of tau that covers the prior evenly over the steps, see
            `even_quantiles`; None: independent draws.

    Raises:
        ValueError: if `reduction` or `per` is unknown, `times` belongs to another SDE, or eps >= T.
    """

    sde: SDE
    prior: TruncationPrior
    times: TimeLaw
    weighting: Weighting
    reduction: Reduction = "mean"
    per: Per = "step"
    even: int | None = None

    def __post_init__(self) -> None:
        if self.reduction not in get_args(Reduction):
            raise ValueError(f'reduction {self.reduction!r} is unknown: write "mean" or "sum"')
        if self.per not in get_args(Per):
            raise ValueError(f'per {self.per!r} is unknown: write "step" or "example"')
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
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """Draw tau (unless given, in (0, T)) and the times of `n` examples, float64.

        `step` is the number of the optimiser step, for `even`; without it tau is drawn at random.

        Raises:
            ValueError: if a given `tau` is not in (0, T).
        """
        if tau is None:
            count = n if self.per == "example" else 1
            if self.even is None or step is None:
                taus = self.prior.sample(count, generator=generator)
            else:
                taus = self.prior.icdf(even_quantiles(count, seed=self.even, step=step))
            tau = taus if self.per == "example" else taus[0]
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
        if "example" in (self.likelihood.per, self.variance.per):
            raise ValueError("MixedLoss: both halves share one tau: write per: step")
        object.__setattr__(self, "reduction", self.likelihood.reduction)

    def draw(
        self,
        n: int,
        *,
        tau: float | Float[Tensor, ""] | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """Draw one tau and the times of `n` examples, alternating between the two laws.

        Raises:
            ValueError: if `n` is odd.
        """
        self._check_even(n)
        first = self.likelihood.draw(n // 2, tau=tau, step=step, generator=generator)
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


@dataclass
class RunningErrorLoss(_DenoisingLoss):
    """A loss over the error that its log-SNR has had so far: `L E[error | log-SNR]^-p`.

    With p = 1 every noise level has about the same loss, as under the learned uncertainty of EDM2
    (Karras et al. 2023, arXiv 2312.02696). There a small network fits the level of the loss, here
    a running mean in bins of log-SNR does. With p = 1/2 large times, whose error is small, are
    raised half as far.

    A step is weighted by the means before it. They take in its errors after it, over all its parts
    and processes, by `remember(bin_sums(...))`, which `softtrunc.training.fit` calls.

    - `memory` (2, bins): decayed sums of error per dimension and of examples, float64. It starts
      with one example of error 1, that of a network that predicts no noise. All state is here.

    Args:
        base: the loss whose examples are weighted.
        power: p, > 0.
        bins: equal parts of the log-SNR between eps and T.
        momentum: what a further example in a bin leaves of the weight of those before, in (0, 1): a
            mean is over about the last `1 / (1 - momentum)`.

    Raises:
        ValueError: if power, bins or momentum is out of range.
    """

    base: SoftTruncationLoss
    power: float
    bins: int = 32
    momentum: float = 0.995
    reduction: Reduction = field(init=False, repr=False)
    memory: Float[Tensor, "2 bins"] = field(init=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"RunningErrorLoss: power={self.power}: need a number > 0, e.g. 0.5")
        if self.bins < 1:
            raise ValueError(f"RunningErrorLoss: bins={self.bins}: need a whole number >= 1")
        if not 0.0 < self.momentum < 1.0:
            raise ValueError(f"RunningErrorLoss: momentum={self.momentum}: need 0 < momentum < 1")
        self.reduction = self.base.reduction
        self.memory = torch.ones(2, self.bins, dtype=torch.float64)

    def _bin(self, t: Tensor) -> Tensor:
        """The bin of each time; the first holds T."""
        ends = torch.tensor([self.base.sde.t_max, self.base.prior.eps], dtype=torch.float64)
        low, high = self.base.sde.log_snr(ends).tolist()
        place: Tensor = (self.base.sde.log_snr(t) - low) / (high - low) * self.bins
        return place.long().clamp(0, self.bins - 1)

    def draw(
        self,
        n: int,
        *,
        tau: float | Float[Tensor, ""] | None = None,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> StepDraw:
        """The draw of the loss that is weighted."""
        return self.base.draw(n, tau=tau, step=step, generator=generator)

    def _loss(self, draw: StepDraw, error: Tensor) -> Float[Tensor, " b"]:
        total, count = self.memory.to(draw.t)
        # The guard is for models that know the noise exactly.
        mean = (total / count).clamp(min=1e-12)[self._bin(draw.t)]
        loss: Tensor = self.base._loss(draw, error) * mean.pow(-self.power).to(error)
        return loss

    def bin_sums(
        self, t: Float[Tensor, " b"], error: Float[Tensor, " b"], dimensions: int
    ) -> Float[Tensor, "2 bins"]:
        """In each bin the sums of error per dimension and of examples of so many `dimensions`."""
        per_dimension = error.detach().to(t) / (dimensions if self.reduction == "sum" else 1)
        # A product, not a scatter: on a GPU that would add in random order.
        member = (self._bin(t)[:, None] == torch.arange(self.bins, device=t.device)).to(t)
        return torch.stack([per_dimension, torch.ones_like(t)]) @ member

    def remember(self, sums: Float[Tensor, "2 bins"]) -> None:
        """Take in the errors of a step, summed over its parts and processes."""
        self.memory = self.memory.to(sums) * self.momentum ** sums[1] + sums
