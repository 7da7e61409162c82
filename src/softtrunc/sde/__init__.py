"""Forward diffusions: how data become noise.

Every SDE here is `dx = f(t) x dt + g(t) dw` on t in [0, 1] with Gaussian transitions
`p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I)` (Song et al. 2021, arXiv 2011.13456, section 3.4).
All of them share the identity `d log_snr / dt = -g^2 / sigma^2`, on which importance-sampled
times, solvers and densities rest.
"""

from softtrunc.sde.base import SDE, Conditioning, Grid, Marginal, Prediction
from softtrunc.sde.exploding import VESDE, ReciprocalVESDE
from softtrunc.sde.preserving import VPSDE, SubVPSDE
from softtrunc.sde.tabulated import BetaSchedule, TabulatedVPSDE
from softtrunc.sde.tensors import expand_to, narrow, random_normal, send, wide_dtype, widen

__all__ = [
    "SDE",
    "SDES",
    "VESDE",
    "VPSDE",
    "BetaSchedule",
    "Conditioning",
    "Grid",
    "Marginal",
    "Prediction",
    "ReciprocalVESDE",
    "SubVPSDE",
    "TabulatedVPSDE",
    "expand_to",
    "narrow",
    "random_normal",
    "send",
    "wide_dtype",
    "widen",
]

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "rve": ReciprocalVESDE,
    "tabulated": TabulatedVPSDE,
}
"""The SDEs of this package by the name that recipes give them."""
