"""The loop of own_loop.py with weights spread over processes (FSDP2): the weights of one process.

Run: torchrun --nproc-per-node 2 examples/own_loop_fsdp.py
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from own_loop import BATCH, LOSS, SEED, batch, new_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from softtrunc import ScoreModel
from softtrunc.training import LossModule, step_draw


def train(steps: int) -> ScoreModel:
    """Train with the other processes of the group; parameters are DTensors afterwards."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    place = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    device = torch.device(place)
    model = new_model().to(device)
    module, mesh = LossModule(model, LOSS), init_device_mesh(device.type, (ranks,))
    for layer in model.network.layers:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)  # model and loss together, as under DDP
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for step in range(steps):
        x, noise = (part.to(device) for part in batch(step, rank, ranks))
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
