"""A learned dequantiser: noise that goes where the model wants it.

Uniform noise asks a density to be flat within every cell of the levels. With noise u drawn from a
conditional density q(u | x) instead, `log P(x) >= E_q[log p(x + u) - log q(u | x)]` (Ho et al.
2019, Flow++, arXiv 1902.00275, section 3.1; used for score models by Song et al. 2021, arXiv
2101.09258, section 5): a bound as honest as the uniform one and, once q is trained, a tighter one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from softtrunc.density.bits import check_on_grid
from softtrunc.density.bound import expected_prior
from softtrunc.density.dequantize import dequantize
from softtrunc.density.residual import gaussian_residual
from softtrunc.noise import Noise
from softtrunc.score import ScoreFunction
from softtrunc.sde import expand_to, random_normal, wide_dtype, widen
from softtrunc.times import ImportanceTimes

_LARGEST_LOG_SCALE = 2.0
"""Of one layer; several multiply."""

_CLOSEST = 1e-9
"""Uniform numbers stay so far from 0 and 1, where a logit has no end; further in coarse types."""


class DrawnNoise(NamedTuple):
    """Noise `(B, *event)` in [0, 1], and the log-density with which it was drawn, (B,) in nats."""

    noise: Float[Tensor, "b *event"]
    log_prob: Float[Tensor, " b"]


def _log_logistic(z: Tensor) -> Tensor:
    """Log-density of the logistic law, the log-derivative of the sigmoid."""
    return logsigmoid(z) + logsigmoid(-z)


class _Coupling(nn.Module):
    """Shifts and scales the dimensions outside of the mask, given those inside and the levels."""

    mask: Tensor

    def __init__(self, mask: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        size = mask.shape[0]
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
        make: Callable[[int, int], nn.Module] = convolution if mask.ndim == 3 else nn.Linear
        last = make(width, 2 * size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            make(2 * size, width), nn.SiLU(), make(width, width), nn.SiLU(), last
        )

    def forward(self, z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, zero inside of the mask; `levels` in [-1, 1]."""
        kept = self.mask * torch.tanh(0.5 * z)
        raw, shift = self.body(torch.cat([levels, kept], 1)).chunk(2, 1)
        log_scale = _LARGEST_LOG_SCALE * torch.tanh(raw / _LARGEST_LOG_SCALE)
        return (1.0 - self.mask) * log_scale, (1.0 - self.mask) * shift


class Dequantizer(nn.Module):
    """A conditional density over the noise of each example, by affine couplings between logits.

    Logistic noise z goes through the layers to y, and `u = sigmoid(y)`. Before training the layers
    are the identity and u is uniform: training starts at uniform dequantisation. The first layer
    looks at the levels alone and moves every dimension; the others move one half given the other
    in turns.

    Args:
        event: shape of an example: (C, H, W), read by convolutions, or (D,).
        levels: number of values L a dimension can take; data are integers in 0 ... L - 1.
        layers: couplings after the first layer.
        width: of the hidden layers.

    Raises:
        ValueError: if an argument is out of range.
    """

    steps: Tensor

    def __init__(
        self, event: Sequence[int], *, levels: int = 256, layers: int = 4, width: int = 32
    ) -> None:
        super().__init__()
        event = tuple(event)
        if len(event) not in (1, 3) or min(event) < 1:
            raise ValueError(f"event={event}: need (D,) or (C, H, W)")
        if levels < 2 or layers < 0 or width < 1:
            raise ValueError(
                f"levels={levels}, layers={layers}, width={width}: need levels >= 2, layers >= 0 "
                "and width >= 1"
            )
        self.event, self.levels, self.width = event, levels, width
        places = torch.stack(torch.meshgrid(*map(torch.arange, event), indexing="ij")).sum(0)
        masks = [torch.zeros(event)] + [((places + i) % 2).float() for i in range(layers)]
        self.couplings = nn.ModuleList(_Coupling(mask, width) for mask in masks)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def describe(self) -> dict[str, int]:
        """Its size, and the steps for which it was trained."""
        return {
            "layers": len(self.couplings) - 1,
            "width": self.width,
            "parameters": sum(p.numel() for p in self.parameters()),
            "training_steps": int(self.steps),
        }

    def _condition(self, levels: Tensor) -> Tensor:
        if levels.shape[1:] != self.event:
            raise ValueError(
                f"levels of shape {tuple(levels.shape)}: this dequantizer is for examples of "
                f"shape {self.event}"
            )
        index = check_on_grid(levels, self.levels)
        dtype = next(self.parameters()).dtype
        return (2.0 * (index.to(dtype) + 0.5) / self.levels) - 1.0

    def transform(
        self, uniform: Float[Tensor, "b *event"], levels: Int[Tensor, "b *event"]
    ) -> DrawnNoise:
        """The noise that numbers in (0, 1) become, and its log-density; differentiable.

        Raises:
            ValueError: if the levels are out of range or of another shape.
        """
        seen = self._condition(levels)
        # The largest number below 1 of a type is half its `eps` away.
        closest = max(_CLOSEST, 0.5 * torch.finfo(uniform.dtype).eps)
        z = uniform.clamp(closest, 1.0 - closest).logit().to(seen.dtype)
        log_prob = _log_logistic(z)
        for coupling in self.couplings:
            log_scale, shift = coupling(z, seen)
            z = z * log_scale.exp() + shift
            log_prob = log_prob - log_scale
        log_prob = log_prob - _log_logistic(z)
        return DrawnNoise(torch.sigmoid(z), widen(log_prob).flatten(1).sum(1))

    @torch.no_grad()
    def draw(
        self,
        levels: Int[Tensor, "b *event"],
        *,
        seeds: Sequence[int] | Int[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
    ) -> DrawnNoise:
        """Noise for each example, by `seeds` independent of the batch, and its log-density.

        Raises:
            ValueError: if the levels are out of range or of another shape.
        """
        noise = Noise(len(levels), seeds, generator, purpose="learned dequantisation")
        return self.transform(noise.uniform(levels, wide_dtype(levels.device)), levels)

    def log_prob(
        self, noise: Float[Tensor, "b *event"], levels: Int[Tensor, "b *event"]
    ) -> Float[Tensor, " b"]:
        """`log q(noise | levels)` in nats, of noise in (0, 1): the layers taken backwards.

        Raises:
            ValueError: if the levels are out of range or of another shape.
        """
        seen = self._condition(levels)
        z = noise.logit().to(seen.dtype)  # in its own type, in which it is not 1
        log_prob = -_log_logistic(z)
        for coupling in reversed(self.couplings):
            # What the layer looks at is what it leaves alone: the same before and after it.
            log_scale, shift = coupling(z, seen)
            z = (z - shift) * (-log_scale).exp()
            log_prob = log_prob - log_scale
        return widen(log_prob + _log_logistic(z)).flatten(1).sum(1)


def _differentiable_bound(
    model: ScoreFunction, x: Tensor, eps: float, generator: torch.Generator
) -> Tensor:
    """One draw of each example's NELBO with a gradient in x, up to what x does not change, (B,)."""
    sde = model.sde
    low = torch.full((), eps, dtype=wide_dtype(x.device), device=x.device)

    def noise(t: Tensor) -> tuple[Tensor, Tensor]:
        z = random_normal(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        score = model.score(sde.perturb(x, t, z), t)
        return z, -expand_to(sde.marginal(t).sigma, x) * score

    times = ImportanceTimes(sde, stratified=True).draw(len(x), eps, generator=generator).t
    z, n = noise(widen(times, x.device))
    log_snr_range = sde.log_snr(low) - sde.log_snr(torch.full_like(low, sde.t_max))
    flow = 0.5 * log_snr_range * widen(n * (n - 2.0 * z)).flatten(1).sum(1)
    z, n = noise(low.expand(len(x)))
    return expected_prior(model, x) + flow + gaussian_residual(z, n, sde.marginal(low).alpha)


def train_dequantizer(
    dequantizer: Dequantizer,
    model: ScoreFunction,
    batches: Iterator[Int[Tensor, "b *event"]],
    *,
    steps: int,
    value_range: tuple[float, float] = (-1.0, 1.0),
    eps: float = 1e-5,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Tighten the bound `E_q[log p(x + u) - log q(u | x)]` in q alone; the model stays as it is.

    In the place of log p stands one draw of the model's evidence bound (`nelbo`), which costs two
    evaluations of the network and their backward pass; the figure that is reported afterwards may
    be of either estimator and is a bound whatever q has become.

    Args:
        dequantizer: on the device of the batches; trained in place.
        model: anything with `.sde` and `.score(x, t)`, differentiable in x.
        batches: levels to train on, without end.
        steps: optimiser steps (Adam, gradients clipped to norm 1, learning rate falling to 0).
        value_range: low and high of the model's data.
        eps: smallest time.
        learning_rate: of Adam, at the start.
        seed: of every draw.

    Yields:
        The loss of each step: bits per dimension less a constant.

    Raises:
        ArithmeticError: if a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(dequantizer.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    wanted = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(False)
        for _ in range(steps):
            levels = next(batches)
            with torch.enable_grad():
                uniform = torch.rand(levels.shape, generator=generator, dtype=torch.float64)
                drawn = dequantizer.transform(widen(uniform, levels.device), levels)
                x = dequantize(levels, dequantizer.levels, value_range, noise=drawn.noise)
                bound = _differentiable_bound(model, x, eps, generator) + drawn.log_prob
                loss = bound.mean() / (x[0].numel() * math.log(2.0))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the dequantizer's loss is {value} after {int(dequantizer.steps)} "
                    "steps: lower its learning rate"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(dequantizer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            dequantizer.steps += 1
            yield value
    finally:
        for p, was in zip(parameters, wanted, strict=True):
            p.requires_grad_(was)
