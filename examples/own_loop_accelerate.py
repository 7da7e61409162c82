"""The loop of own_loop.py with accelerate: any devices, gradients accumulated over micro-batches.

Run: accelerate launch examples/own_loop_accelerate.py
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from own_loop import BATCH, LOSS, SEED, batch, new_model

from softtrunc import ScoreModel
from softtrunc.training import LossModule, step_draw

MICRO_BATCHES = 4


def train(steps: int, accelerator: Accelerator) -> ScoreModel:
    """Train with the accelerator's processes, which accumulates over `MICRO_BATCHES`."""
    rank, ranks = accelerator.process_index, accelerator.num_processes
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    module, optimizer = accelerator.prepare(LossModule(model, LOSS), optimizer)
    for step in range(steps):
        x, noise = (part.to(accelerator.device) for part in batch(step, rank, ranks))
        # Once for an optimiser step: its processes and micro-batches share the tau.
        draw = step_draw(LOSS, BATCH, seed=SEED, step=step, rank=rank, ranks=ranks)
        size = len(x) // MICRO_BATCHES
        for start in range(0, len(x), size):
            stop = start + size
            with accelerator.accumulate(module):
                terms = module(x[start:stop], draw=draw.part(start, stop), noise=noise[start:stop])
                accelerator.backward(terms.loss.mean())
                optimizer.step()
                optimizer.zero_grad()
        if (step + 1) % 500 == 0:
            accelerator.print(f"step {step + 1}: loss {terms.loss.mean():.3f}")
    return model


if __name__ == "__main__":
    words = map(int, sys.argv[1:] or ["2000"])
    train(*words, Accelerator(gradient_accumulation_steps=MICRO_BATCHES))
