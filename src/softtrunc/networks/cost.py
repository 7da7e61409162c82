"""What a network costs, found without allocating it: parameters, operations, memory."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from softtrunc.networks.build import NetworkConfig, build_network, output_of


@functools.cache
def parameter_count(config: NetworkConfig) -> int:
    """Number of parameters, the frozen Fourier frequencies included."""
    return sum(parameter.numel() for parameter in _meta_network(config).parameters())


def flops_per_image(config: NetworkConfig) -> int:
    """Floating-point operations of the forward pass on one image.

    Counts convolutions and matrix products, two operations per multiply-add; a training step
    takes about three times as many.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        _meta_network(config).eval()(*_meta_batch(config, 1))
    return int(counter.get_total_flops())


def estimate_activation_bytes(
    config: NetworkConfig, batch_size: int, bytes_per_element: int = 4, *, training: bool = True
) -> int:
    """Largest memory that intermediate results take at one time in a training step, in bytes.

    Counts every tensor made by one forward and backward pass while it is alive; parameters, their
    gradients, the optimiser and the working space of the kernels come on top.

    Args:
        config: the network.
        batch_size: images in the (micro-)batch on one device.
        bytes_per_element: 4 for float32, 2 for bfloat16 or float16.
        training: False: of a forward pass that keeps nothing for gradients, as samplers make it.
    """
    network = _meta_network(config).train(training)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    x, c = _meta_batch(config, batch_size)
    with _LiveElements() as live, torch.set_grad_enabled(training):
        out = output_of(network, x, c)
        if training:
            out.sum().backward()
    peak: int = live.peak
    return peak * bytes_per_element


class _LiveElements(TorchDispatchMode):
    """Counts the elements of the tensors that operations have made and that still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage() for leaf in _tensors((args, kwargs))}
        for leaf in _tensors(result):
            storage = leaf.untyped_storage()
            if storage in given or storage in self._seen:
                continue
            self._seen.add(storage)
            elements = storage.nbytes() // leaf.element_size()
            self.current += elements
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._free, elements)
        return result

    def _free(self, elements: int) -> None:
        self.current -= elements


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _meta_network(config: NetworkConfig) -> nn.Module:
    with torch.device("meta"):
        return build_network(config)


def _meta_batch(config: NetworkConfig, batch_size: int) -> tuple[Tensor, Tensor]:
    x = torch.empty(batch_size, config.channels, *config.size, device="meta")
    return x, torch.empty(batch_size, device="meta")
