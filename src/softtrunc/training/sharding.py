"""Networks whose parameters are spread over the processes (PyTorch's FSDP2), seen as whole ones.

The optimiser and the average live on each process's shards: both act element by element. Only what
is written or read is whole, tensor by tensor. PyTorch's part of it is imported by `shard` alone: it
takes a while, and not every build of PyTorch has it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard(network: nn.Module, units: Iterable[nn.Module], device: torch.device) -> None:
    """Spread a network's parameters over all processes, in place.

    To be called before an optimiser or an average sees them.

    Args:
        network: built alike on every process.
        units: parts of it that are gathered one at a time, and let go of after their forward pass.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*units, network):
        # The whole network too: what stays gathered after it would hide what the average puts in.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether its parameters are spread over the processes."""
    return bool(_spread_parts(module))


def _spread_parts(module: nn.Module) -> list[FSDPModule]:
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _is_spread(tensor: Tensor) -> TypeGuard[DTensor]:
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory; a whole tensor as it is."""
    if _is_spread(tensor):
        part: Tensor = tensor.to_local().detach()
        return part
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; of one that is spread all processes must ask together."""
    return tensor.full_tensor() if _is_spread(tensor) else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread as `like` is."""
    if not _is_spread(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy on the device of `like`, in its order in memory and spread as it is.

    The optimiser's one kernel goes through a parameter and its moments without a look at strides.
    """
    if _is_spread(like):
        return spread(tensor, like)
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what every process has a part of, spread as `like` is."""
    if not _is_spread(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, places = like.device_mesh, like.placements
    return whole(DTensor.from_local(part, mesh, places, shape=like.shape, stride=like.stride()))


@contextmanager
def gradients_kept(module: nn.Module) -> Iterator[None]:
    """Within the block gradients add up on each process and are not exchanged."""
    parts = _spread_parts(module)
    for part in parts:
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_requires_gradient_sync(True, recurse=False)
