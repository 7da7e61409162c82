"""The loop of own_loop.py with Lightning: any strategy, gradients accumulated over micro-batches.

Run: pip install pytorch-lightning; python examples/own_loop_lightning.py
"""

from __future__ import annotations

import sys

import pytorch_lightning as lightning
import torch
from own_loop import BATCH, LOSS, SEED, new_model, two_moons
from torch import Tensor
from torch.utils.data import DataLoader

from softtrunc import LossTerms
from softtrunc.training import LossModule, step_draw

MICRO_BATCHES = 4


class SoftTruncation(lightning.LightningModule):
    """A model and its loss; the network inside is `self.terms.model.network`."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = LossModule(new_model(), LOSS)

    def training_step(self, x: Tensor, index: int) -> Tensor:
        """The loss of a micro-batch, at the tau of the optimiser step that it belongs to."""
        parts, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        size = len(x) * parts * ranks
        step = self.global_step
        draw = step_draw(LOSS, size, seed=SEED, step=step, rank=self.global_rank, ranks=ranks)
        start = index % parts * len(x)
        terms: LossTerms = self.terms(x, draw=draw.part(start, start + len(x)))
        self.log("tau", terms.tau.float())
        return terms.loss.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def train(steps: int, **options: object) -> SoftTruncation:
    """Train; `options` are of Lightning's `Trainer`."""
    data = two_moons(64 * BATCH, torch.Generator().manual_seed(SEED))
    # Whole batches alone, so that all micro-batches of a step have one size.
    loader = DataLoader(data, batch_size=BATCH // MICRO_BATCHES, shuffle=True, drop_last=True)
    module = SoftTruncation()
    trainer = lightning.Trainer(max_steps=steps, accumulate_grad_batches=MICRO_BATCHES, **options)
    trainer.fit(module, loader)
    return module


if __name__ == "__main__":
    train(*map(int, sys.argv[1:] or ["2000"]))
