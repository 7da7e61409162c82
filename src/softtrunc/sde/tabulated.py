"""A discrete schedule of noise levels, made continuous."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from softtrunc.sde.base import SDE, Conditioning
from softtrunc.sde.tensors import narrow, widen

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
"""The usual betas by the names that diffusers gives them; see `TabulatedVPSDE.from_schedule`."""

_LARGEST_BETA = 0.999  # of the cosine schedule (Nichol & Dhariwal 2021, section 3.2)
_COSINE_OFFSET = 0.008
_LONGEST = 100_000  # a table is made of all steps

# Where tables are made, also while a network is sketched on the meta device.
_HOME = torch.device("cpu")

# Where in an interval the steps of Newton's method are counted, and up to which change of log t. It
# needs three to six; where it leaves the interval, halving does the rest in these.
_SHARES = (1e-12, 1e-9, 1e-6, 1e-3, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0 - 1e-3, 1.0 - 1e-6)
_CHANGE = 1e-12
_MOST_STEPS = 60


def _softplus(x: Tensor) -> Tensor:
    """`log(1 + e^x)`; PyTorch takes x for it above 20, which float64 can tell apart."""
    return functional.softplus(x, threshold=40.0)


class _Piece(NamedTuple):
    """A cubic in s on [0, 1]: `start + s (slope + s (bend + s turn))`; `left` and `width` in u."""

    left: Tensor
    width: Tensor
    start: Tensor
    slope: Tensor
    bend: Tensor
    turn: Tensor

    def value(self, s: Tensor) -> Tensor:
        return self.start + s * (self.slope + s * (self.bend + s * self.turn))

    def derivative(self, s: Tensor) -> Tensor:
        return self.slope + s * (2.0 * self.bend + 3.0 * s * self.turn)


@dataclass(frozen=True, repr=False)
class TabulatedVPSDE(SDE):
    """The variance-preserving SDE of a model trained at N discrete noise levels, such as DDPM.

    Step i = 0 ... N - 1 stands for the time `(i + 1) / N`, where alpha^2 is `alphas_cumprod[i]`
    exactly. Between them the log-SNR is interpolated in log t by monotone cubics with continuous
    slopes (Fritsch & Carlson 1980, the harmonic means of Fritsch & Butland 1984), and drift and
    diffusion are its derivative. Below the first step sigma^2 falls in proportion to t: a trained
    network has never been there, so `t_end` is 1 / N.

    Args:
        alphas_cumprod: alpha^2 of each step: in (0, 1), strictly falling, at least two; kept as a
            tuple.

    Raises:
        ValueError: if the table is none of this kind.
    """

    alphas_cumprod: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        table = tuple(float(a) for a in self.alphas_cumprod)
        object.__setattr__(self, "alphas_cumprod", table)
        if len(table) < 2:
            raise ValueError(f"TabulatedVPSDE: {len(table)} steps: need at least 2")
        for i, (before, a) in enumerate(zip((1.0, *table), table, strict=False)):
            if not 0.0 < a < before:
                raise ValueError(
                    f"TabulatedVPSDE: alphas_cumprod[{i}] = {a}: need numbers in (0, 1) that fall "
                    "strictly (alpha^2 of each step)"
                )

    def __repr__(self) -> str:
        first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
        return f"TabulatedVPSDE({self.steps} steps, alphas_cumprod {first:.6g} to {last:.4g})"

    @classmethod
    def from_betas(
        cls, betas: Iterable[float], dtype: torch.dtype = torch.float64
    ) -> TabulatedVPSDE:
        """The schedule whose step i keeps `1 - betas[i]` of the signal's variance.

        Args:
            betas: one a step.
            dtype: of the arithmetic. In float32, in which diffusers has it, sigma of the first
                steps is off by up to a thousandth; a model from there means that one.

        Raises:
            ValueError: if a beta is not in (0, 1), or there are fewer than two.
        """
        beta = torch.tensor([float(b) for b in betas], dtype=dtype, device=_HOME)
        if not bool(((beta > 0.0) & (beta < 1.0)).all()):
            raise ValueError("TabulatedVPSDE: betas must lie in (0, 1)")
        return cls(tuple((1.0 - beta).cumprod(0).tolist()))

    @classmethod
    def from_schedule(
        cls,
        schedule: BetaSchedule = "linear",
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        dtype: torch.dtype = torch.float64,
    ) -> TabulatedVPSDE:
        """One of the usual schedules.

        Args:
            schedule: "linear": betas evenly spaced (Ho et al. 2020); "scaled_linear": their roots
                are (Rombach et al. 2022); "squaredcos_cap_v2": alpha is a cosine (Nichol & Dhariwal
                2021), whatever `beta_start` and `beta_end` say.
            steps: N.
            beta_start: the first beta.
            beta_end: the last one.
            dtype: see `from_betas`.

        Raises:
            ValueError: if the schedule is unknown, its betas do not lie in (0, 1), or the steps are
                fewer than 2 or more than 100,000.
        """
        if not 2 <= steps <= _LONGEST:
            raise ValueError(f"TabulatedVPSDE: {steps} steps: need 2 to {_LONGEST:,}")
        if schedule == "linear":
            betas = torch.linspace(beta_start, beta_end, steps, dtype=dtype, device=_HOME)
        elif schedule == "scaled_linear":
            ends = math.sqrt(max(beta_start, 0.0)), math.sqrt(max(beta_end, 0.0))
            betas = torch.linspace(*ends, steps, dtype=dtype, device=_HOME).square()
        elif schedule == "squaredcos_cap_v2":
            share = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device=_HOME)
            angle = (share + _COSINE_OFFSET) / (1.0 + _COSINE_OFFSET) * (math.pi / 2.0)
            alpha_squared = angle.cos().square()
            betas = (1.0 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=_LARGEST_BETA)
        else:
            raise ValueError(
                f"schedule {schedule!r} is unknown: write linear, scaled_linear or "
                "squaredcos_cap_v2, or give the betas themselves"
            )
        return cls.from_betas(betas.tolist(), dtype)

    @property
    def steps(self) -> int:
        """N, the number of steps."""
        return len(self.alphas_cumprod)

    @property
    def prior_std(self) -> float:
        """1: nearly nothing of the data is left at T."""
        return 1.0

    @property
    def exploding(self) -> bool:
        """False, also where a short schedule leaves much of the data at T."""
        return False

    @property
    def t_end(self) -> float:
        """1 / N, the time of the first step: below it the network was never trained."""
        return 1.0 / self.steps

    @property
    def conditionings(self) -> tuple[Conditioning, Conditioning]:
        """The step, and the unbounded label of VP networks."""
        return ("timestep", "unbounded_time")

    def timestep(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """`N t - 1`: the step at `t`, counted from 0."""
        return narrow(self.steps * widen(t) - 1.0, t)

    @cached_property
    def _table(self) -> Tensor:
        """Rows: u = log t of each step, its log-SNR, and d log_snr / du; float64 on the CPU."""
        values = cast(tuple[float, ...], self.alphas_cumprod)
        a = torch.tensor(values, dtype=torch.float64, device=_HOME)
        v = a.log() - torch.log1p(-a)
        step = torch.arange(1, self.steps + 1, dtype=torch.float64, device=_HOME)
        u = (step / self.steps).log()
        return torch.stack([u, v, _monotone_slopes(u, v)])

    @cached_property
    def _tables(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _table_like(self, v: Tensor) -> Tensor:
        key = v.device, v.dtype
        if key not in self._tables:
            self._tables[key] = self._table.to(device=v.device, dtype=v.dtype)
        return self._tables[key]

    def _piece(self, k: Tensor, like: Tensor) -> _Piece:
        """The cubic between steps k and k + 1."""
        # As a list of places: a single one, (), would be asked for by the host.
        places, table = k.reshape(-1), self._table_like(like)
        u, v, d = table[:, places].reshape(3, *k.shape)
        next_u, next_v, next_d = table[:, places + 1].reshape(3, *k.shape)
        width, rise = next_u - u, next_v - v
        first, last = width * d, width * next_d
        return _Piece(
            u, width, v, first, 3.0 * rise - 2.0 * first - last, first + last - 2.0 * rise
        )

    @cached_property
    def _solver_steps(self) -> int:
        """The steps after which Newton's method is done anywhere on this table.

        All take as many: a device would be waited for to tell which need more.
        """
        piece = self._piece(torch.arange(self.steps - 1, device=_HOME), self._table)
        shares = torch.tensor(_SHARES, dtype=torch.float64, device=_HOME)[:, None]
        walk = pairwise(_newton(piece, piece.value(shares)))
        for steps, (before, after) in enumerate(islice(walk, _MOST_STEPS), start=1):
            if bool(((after - before).abs() * piece.width <= _CHANGE).all()):
                return steps
        return _MOST_STEPS

    def _log_snr_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The log-SNR and its slope over log t."""
        k = (self.steps * t).floor().long().clamp(1, self.steps - 1) - 1
        piece = self._piece(k, t)
        s = (t.clamp(min=torch.finfo(t.dtype).tiny).log() - piece.left) / piece.width
        inside = s.clamp(min=0.0)  # below the first step the line goes on
        log_snr = piece.value(inside) + (s - inside) * piece.slope
        return log_snr, piece.derivative(inside) / piece.width

    def _log_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_snr, _ = self._log_snr_and_slope(t)
        log_sigma = torch.where(t > 0.0, -0.5 * _softplus(log_snr), -math.inf)
        return -0.5 * _softplus(-log_snr), log_sigma

    def _drift(self, t: Tensor) -> Tensor:
        return -0.5 * self._diffusion_squared(t)

    def _diffusion_squared(self, t: Tensor) -> Tensor:
        # One exponential for sigma^2 / t, of which both vanish with t.
        log_snr, slope = self._log_snr_and_slope(t)
        log_t = t.clamp(min=torch.finfo(t.dtype).tiny).log()
        return ((-slope).log() - _softplus(log_snr) - log_t).exp()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        _, v, d = self._table_like(log_snr)
        k = torch.searchsorted(-v, -log_snr.contiguous()).clamp(1, self.steps - 1) - 1
        piece = self._piece(k, log_snr)
        walk = _newton(piece, log_snr.clamp(v[-1], v[0]))
        s = next(islice(walk, self._solver_steps, None))
        beyond = (log_snr.clamp(min=v[0]) - v[0]) / d[0]
        t: Tensor = (piece.left + s * piece.width + beyond).exp().clamp(max=self.t_max)
        return t


def _monotone_slopes(u: Tensor, v: Tensor) -> Tensor:
    """Slopes at the points of a falling table, such that the cubics between them fall."""
    h = u.diff()
    secant = v.diff() / h
    before, after = 2.0 * h[1:] + h[:-1], h[1:] + 2.0 * h[:-1]
    inner = (before + after) / (before / secant[:-1] + after / secant[1:])
    # Sigma^2 starts in proportion to t, slope -1, unless the first cubic could not fall then.
    first = torch.maximum(torch.full_like(secant[:1], -1.0), 3.0 * secant[:1])
    if len(h) == 1:
        return torch.cat([first, secant])
    last = ((2.0 * h[-1] + h[-2]) * secant[-1] - h[-1] * secant[-2]) / (h[-1] + h[-2])
    last = last.clamp(3.0 * secant[-1], 0.05 * secant[-1])
    return torch.cat([first, inner, last[None]])


def _newton(piece: _Piece, value: Tensor) -> Iterator[Tensor]:
    """Ever nearer to where a falling cubic has a value, beginning with a guess.

    Newton's steps; halves of the interval where they leave it.
    """
    low, high = torch.zeros_like(value), torch.ones_like(value)
    end = piece.value(high)
    s = ((value - piece.start) / (end - piece.start)).clamp(0.0, 1.0)
    while True:
        yield s
        rest = piece.value(s) - value
        low, high = torch.where(rest > 0.0, s, low), torch.where(rest > 0.0, high, s)
        newton = s - rest / piece.derivative(s)
        inside = (newton >= low) & (newton <= high)
        s = torch.where(inside, newton, 0.5 * (low + high))
