"""The importance-weighted bound: several draws of an example's noise weighed against each other."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from softtrunc.sde import widen


def importance_weighted(nats: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """`-log mean exp(-nats)` over K draws of each example, in the widest type.

    (Burda et al. 2016, arXiv 1509.00519.) For draws with `E exp(-nats) = P(x)`, a nats of one draw
    bounds `-log P(x)` in expectation, and that of K draws is a bound that is never looser and goes
    to `-log P(x)` as K grows. It holds for dependent draws too.

    Every random part of `nats` must belong to such a weight. The noise, its density and
    the step back to the data do. A random estimate of the log-density itself does not: errors of
    Hutchinson's trace that differ from draw to draw look like luck, and the result falls below the
    truth by about half their variance. So the draws of an example share their probes
    (`probe_seeds` of `probability_flow_nll`), and `nelbo`, an estimate of an expectation, is not to
    be weighed at all.

    Args:
        nats: of each draw, dequantisation included.
    """
    return math.log(nats.shape[1]) - (-widen(nats)).logsumexp(1)
