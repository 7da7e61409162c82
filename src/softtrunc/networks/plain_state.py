"""The state of a network under plain names: what wraps it leaves no trace, tied tensors stand once.

`torch.compile`, DataParallel and DistributedDataParallel put a part of their own into every name.
A file under such names could be read back into a network that is wrapped in the same way alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

WRAPPERS = ("module", "_orig_mod")
"""The parts of names that wrappers add."""


def plain_name(name: str) -> str:
    """A name without the parts of wrappers."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Plain names by the names of a state; all as they are where two would become one."""
    found = {name: plain_name(name) for name in names}
    return found if len(set(found.values())) == len(found) else {name: name for name in found}


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, of whatever compiles it or spreads it over devices."""
    while True:
        inner = network._modules.get("_orig_mod")
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if inner is None:
            return network
        network = inner


def saved_names(module: nn.Module) -> dict[str, str]:
    """Of every tensor of a module, by its plain name, the plain name that it is saved under.

    That is the first name of the tensors that are tied: of the same object.
    """
    state = module.state_dict(keep_vars=True)
    plain, first = plain_names(state), dict[int, str]()
    return {plain[name]: first.setdefault(id(value), plain[name]) for name, value in state.items()}


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """What to save of a module: every tensor once, in memory that it shares with no other.

    In the layout that it has; what is written to a file must be contiguous.
    """
    state = module.state_dict()
    plain, saved = plain_names(state), saved_names(module)
    once = {
        plain[name]: value.detach()
        for name, value in state.items()
        if saved[plain[name]] == plain[name]
    }
    used = Counter(value.untyped_storage().data_ptr() for value in once.values())
    return {
        name: value.clone() if used[value.untyped_storage().data_ptr()] > 1 else value
        for name, value in once.items()
    }


def state_for(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A saved state under the module's own names, those of tied tensors too.

    Args:
        module: what it is for; that the state fits is known.
        tensors: as saved, with or without the names of wrappers.
        where: what an error begins with.

    Raises:
        ValueError: if tensors that the module ties are different.
    """
    given, saved = plain_names(tensors), saved_names(module)
    found = {given[name]: tensor for name, tensor in tensors.items()}
    for name, first in saved.items():
        if name in found and not torch.equal(found.setdefault(first, found[name]), found[name]):
            raise ValueError(f"{where}: {name} and {first} differ, the network has one for both")
    return {name: found[saved[plain]] for name, plain in plain_names(module.state_dict()).items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values of weights, whatever file they come from."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
