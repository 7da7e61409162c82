"""The loop of own_loop.py with Hugging Face's Trainer, gradients accumulated over micro-batches.

Run: pip install transformers; python examples/own_loop_trainer.py
"""

from __future__ import annotations

import sys

import torch
from own_loop import BATCH, LOSS, SEED, new_model, two_moons
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from softtrunc import LossTerms
from softtrunc.training import LossModule, step_draw

MICRO_BATCHES = 4


class SoftTruncationTrainer(Trainer):
    """Its model is a `LossModule`, its data are mappings {"x": example}."""

    _seen = 0  # micro-batches so far

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: object, **__: object
    ) -> Tensor:
        """The loss of a micro-batch, at the tau of the optimiser step that it belongs to."""
        x, step = inputs["x"], self.state.global_step
        parts, ranks = self.args.gradient_accumulation_steps, self.args.world_size
        rank, size = self.args.process_index, len(x) * parts * ranks
        draw = step_draw(LOSS, size, seed=SEED, step=step, rank=rank, ranks=ranks)
        start = self._seen % parts * len(x)
        self._seen += 1
        terms: LossTerms = model(x, draw=draw.part(start, start + len(x)))
        return terms.loss.mean()


def train(steps: int, folder: str, **options: object) -> LossModule:
    """Train; `folder` and `options` are of `TrainingArguments`."""
    data = two_moons(64 * BATCH, torch.Generator().manual_seed(SEED))
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH // MICRO_BATCHES,
        gradient_accumulation_steps=MICRO_BATCHES,
        dataloader_drop_last=True,  # all micro-batches of a step have one size
        remove_unused_columns=False,  # `x` is no argument that Trainer knows
        learning_rate=2e-3,
        report_to="none",
        **options,
    )
    module = LossModule(new_model(), LOSS)
    rows = [{"x": x} for x in data]
    SoftTruncationTrainer(model=module, args=arguments, train_dataset=rows).train()
    return module


if __name__ == "__main__":
    train(*map(int, sys.argv[1:] or ["2000"]), folder="runs/trainer")
