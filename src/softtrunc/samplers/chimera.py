"""Two models in one: the score of the first at large times, that of the second at small ones."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from softtrunc.score import BoundModel, ScoreFunction, rows_of, score_at
from softtrunc.sde import SDE


class Chimera(BoundModel):
    """A score function that asks `above` for times > t and `below` for times <= t.

    Samples of it tell which of the two decides them, as a function of t (Kim et al. 2022, arXiv
    2106.05527). Where the times of a batch lie on both sides, both models are asked for the whole
    of it, so that what a network rounds does not depend on t.

    Args:
        above: anything with `.sde` and `.score(x, t)`.
        below: the same, with an equal SDE and, where both have one, an equal `value_range`.
        t: the time in [0, T] at which one takes over from the other.

    Raises:
        ValueError: if the two do not belong together, or `t` is out of range.
    """

    def __init__(self, above: ScoreFunction, below: ScoreFunction, t: float) -> None:
        super().__init__()
        ranges: list[tuple[float, float] | None]
        ranges = [getattr(model, "value_range", None) for model in (above, below)]
        if above.sde != below.sde:
            raise ValueError(
                f"Chimera: the model above has {above.sde}, the one below {below.sde}: both need "
                "the same SDE"
            )
        if None not in ranges and ranges[0] != ranges[1]:
            raise ValueError(
                f"Chimera: the model above takes data in {ranges[0]}, the one below in "
                f"{ranges[1]}: both need the same value_range"
            )
        if not 0.0 <= t <= above.sde.t_max:
            raise ValueError(f"Chimera: t={t}: need 0 <= t <= {above.sde.t_max}")
        self.above = above
        self.below = below
        self.t = t
        self.value_range = ranges[0] or ranges[1]

    @property
    def sde(self) -> SDE:
        """The forward diffusion of both."""
        return self.above.sde

    def at(self, t: float) -> ScoreFunction:
        """The model that this time belongs to."""
        return score_at(self.above if t > self.t else self.below, t)

    def rows(self, index: Int[Tensor, " n"], batch: int | None = None) -> Chimera:
        """The same for the examples at these places of a batch, in their order."""
        above, below = (rows_of(model, index, batch) for model in (self.above, self.below))
        return Chimera(above, below, self.t)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """`grad log p_t(x)` by the model that `t`, of shape `()` or `(B,)`, belongs to."""
        high = t > self.t
        everywhere, somewhere = torch.stack([high.all(), high.any()]).tolist()
        if everywhere:
            return self.above.score(x, t)
        if not somewhere:
            return self.below.score(x, t)
        chosen = high.reshape(-1, *([1] * (x.ndim - 1)))
        return torch.where(chosen, self.above.score(x, t), self.below.score(x, t))
