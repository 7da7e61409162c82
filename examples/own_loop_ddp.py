"""The loop of own_loop.py under DistributedDataParallel: the weights that one process would get.

Run: torchrun --nproc-per-node 2 examples/own_loop_ddp.py
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from own_loop import BATCH, LOSS, SEED, batch, new_model
from torch.nn.parallel import DistributedDataParallel

from softtrunc import ScoreModel
from softtrunc.training import LossModule, step_draw


def train(steps: int) -> ScoreModel:
    """Train with the other processes of the group."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    place = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    device = torch.device(place)
    model = new_model().to(device)
    # What is wrapped and called is model and loss together: gradients are exchanged because the
    # forward pass went through the wrapper.
    module = DistributedDataParallel(LossModule(model, LOSS))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        x, noise = (part.to(device) for part in batch(step, rank, ranks))
        # One tau for all processes, and to each its own of the batch's times; nothing is sent.
        draw = step_draw(LOSS, BATCH, seed=SEED, step=step, rank=rank, ranks=ranks)
        terms = module(x, draw=draw, noise=noise)
        optimizer.zero_grad()
        terms.loss.mean().backward()
        optimizer.step()
        if rank == 0 and (step + 1) % 500 == 0:
            print(f"step {step + 1}: loss {terms.loss.mean():.3f}, tau {terms.tau:.2e}")
    return model


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(*map(int, sys.argv[1:] or ["2000"]))
    dist.destroy_process_group()
