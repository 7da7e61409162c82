"""A pretend accelerator: tensors of real CPU numbers that say they are on "cuda" or "mps".

What the real devices refuse is refused: mixing devices, foreign generators, float64 on "mps", and
copies that are neither pinned nor waited for. What makes the host wait for the device is counted by
the line that asked. The kernels that were used are kept, to be looked up in torch's own list.

What it cannot show, or shows otherwise than a device does:

- Speed, memory, the device's rounding, its random numbers, and a copy that is read too early:
  everything runs at once on the CPU.
- Below Python the tensors are the CPU's. What asks there for a device is told "cpu": only torch's
  grouping of tensors by device is corrected here. Autocast leaves them alone, and no custom kernel,
  compiled graph, stream or process group ever runs.
- A kernel counts as written if torch's list names one for the device, whatever types it takes, and
  a composite one if it is composite, whatever it calls on a device alone.
- `_foreach` functions are left out by torch for tensor subclasses where it has a choice:
  `clip_grad_norm_` goes tensor by tensor here. Attention takes the CPU's kernel.
- A number of the CPU beside tensors of the device is let through but where `_ONLY_THERE` says no;
  real kernels may refuse more.
- Waits are those of `_ASKS`, of indices and of copies. Of what a library does by itself (cuDNN's
  trials, the allocator, a first use of a kernel) there is none.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from unittest import mock

import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import softtrunc

# The values of these are known to the host only when the device has come so far.
_ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# They take no number of the CPU beside tensors of a device, as others do.
_ONLY_THERE = {"_fused_adam", "_fused_adam_", "_fused_adamw", "_fused_adamw_", "cat", "stack"}
_CPU_ONLY = torch.Generator
# Devices have ones of their own in their places.
_OF_THE_CPU = {
    "_scaled_dot_product_flash_attention_for_cpu.default",
    "_scaled_dot_product_flash_attention_for_cpu_backward.default",
}


@cache
def _listed_kernels() -> dict[str, dict]:
    """Torch's own list of functions, and the devices that each is written for."""
    listed = files("torchgen") / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(listed.read_text(), yaml.CSafeLoader)
    return {entry["func"].partition("(")[0]: entry for entry in entries}


class Machine:
    """The device under test: its kind, the host's waits by line, the kernels used by name."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind, 0)
        self.waits: Counter[str] = Counter()
        self.kernels: dict[str, str] = {}

    def wait(self, what: str) -> None:
        self.waits[f"{_asking_line()}: {what}"] += 1

    def has(self, device: object) -> bool:
        return device is not None and torch.device(device).type == self.device.type

    def held(self, inner: torch.Tensor) -> Held:
        if self.device.type == "mps" and inner.dtype is torch.float64:
            raise TypeError(f"MPS has no float64 ({_asking_line()})")
        return Held(inner)

    def missing_kernels(self) -> dict[str, str]:
        """Kernels used that torch has not written for this device, and the lines that used them."""
        known, missing = _listed_kernels(), {}
        for name, line in self.kernels.items():
            entry = known.get(name.removesuffix(".default"), {})
            base = known.get(entry.get("structured_delegate"), {})
            written = {**entry.get("dispatch", {}), **base.get("dispatch", {})}
            keys = {key.strip() for names in written for key in names.split(",")}
            if "ufunc_inner_loop" in base:
                keys |= {"CPU", "CUDA"}
            composite = not keys or any(key.startswith("Composite") for key in keys)
            if not composite and self.device.type.upper() not in keys and name not in _OF_THE_CPU:
                missing[name] = line
        return missing


_machine: Machine | None = None

# A checkout may have the package's name: what lies in it is not the package.
_PACKAGE = Path(softtrunc.__file__).parent


def _asking_line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


class Held(torch.Tensor):
    """A tensor of the pretend device around one of the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        held = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="cpu"
        )
        held.inner = inner
        return held

    @property
    def device(self):
        return _machine.device

    @property
    def is_cuda(self):
        return _machine.device.type == "cuda"

    @property
    def is_mps(self):
        return _machine.device.type == "mps"

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        _machine.wait("tolist")
        return self.inner.tolist()

    def numpy(self):
        raise TypeError("can't convert a tensor of a device to numpy: use Tensor.cpu() first")

    def __repr__(self):
        return f"Held({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _inner(value):
    return tree_map_only(Held, lambda held: held.inner, value)


def _run(function, args, kwargs):
    name = function._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Held)]
    others = [tensor for tensor in tensors if not isinstance(tensor, Held)]
    if name == "copy_":
        into, source = args[:2]
        if isinstance(into, Held) != isinstance(source, Held) and source.ndim:
            _machine.wait("a copy between devices")
        _inner(into).copy_(_inner(source))
        return into
    if name in _INDEXING:
        for index in (index for index in args[1] if index is not None):
            if index.dtype in (torch.bool, torch.uint8):
                _machine.wait("a mask as index")
            elif not isinstance(index, Held):
                _machine.wait("an index on the CPU")
    elif any(tensor.ndim or name in _ONLY_THERE for tensor in others):  # numbers go along
        raise RuntimeError(f"{name}: tensors of both devices ({_asking_line()})")
    if name in _ASKS:
        _machine.wait(name)
    generator = kwargs.get("generator")
    if generator is not None and not isinstance(generator, _Generator):
        raise RuntimeError(f"{name}: a generator of the CPU ({_asking_line()})")
    overload = function._overloadname
    kernel = f"{name}.{overload}" if overload else name
    if kernel not in _machine.kernels:
        _machine.kernels[kernel] = _asking_line()
    if _machine.has(kwargs.get("device")):
        kwargs = kwargs | {"device": "cpu"}
    found = function(*_inner(args), **_inner(kwargs))
    same = {id(tensor.inner): tensor for tensor in ours}
    return tree_map_only(
        torch.Tensor, lambda out: same[id(out)] if id(out) in same else _machine.held(out), found
    )


class _Generator(_CPU_ONLY):
    @property
    def device(self):
        return _machine.device


class _Generators(_CPU_ONLY):
    """In the place of `torch.Generator`: one of either device."""

    def __new__(cls, device="cpu"):
        return _Generator("cpu") if _machine.has(device) else _CPU_ONLY(device)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, there, dtype):
        ctx.back, ctx.dtype = not isinstance(x, Held), x.dtype
        inner = _inner(x).to(dtype, copy=True)
        return _machine.held(inner) if there else inner

    @staticmethod
    def backward(ctx, gradient):
        inner = _inner(gradient).to(ctx.dtype)
        return (inner if ctx.back else _machine.held(inner)), None, None


def _moved(x, device, dtype, non_blocking):
    there = isinstance(x, Held) if device is None else _machine.has(device)
    if there == isinstance(x, Held):
        return x if dtype in (None, x.dtype) else torch.ops.aten._to_copy(x, dtype=dtype)
    if there and non_blocking and not hasattr(x, "held_pinned"):
        raise RuntimeError(f"nobody waits for this copy, and it is not pinned ({_asking_line()})")
    if not (there and non_blocking):
        _machine.wait("to the device" if there else "from the device")
    if (there and dtype is None and x.dtype is torch.float64) or (not there and dtype is not None):
        _machine.held(_inner(x).new_empty(0, dtype=dtype))  # a type that it has; cast there
    return _Move.apply(x, there, dtype or x.dtype)


_MAKERS = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint,
    torch.arange, torch.linspace, torch.eye, torch.randperm, torch.tensor, torch.as_tensor,
    torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like,
    torch.randn_like,
}  # fmt: skip


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if function is torch.Tensor.cpu:
            return _moved(args[0], "cpu", None, non_blocking=False)
        if function is torch.Tensor.pin_memory or kwargs.get("pin_memory"):
            kwargs.pop("pin_memory", None)
            made = (
                args[0].clone()
                if function is torch.Tensor.pin_memory
                else function(*args, **kwargs)
            )
            made.held_pinned = True
            return made
        if function.__name__ == "new_tensor" and isinstance(args[0], Held):
            _machine.wait("new_tensor")
            return _machine.held(args[0].inner.new_tensor(*args[1:], **kwargs))
        if function in _MAKERS and _machine.has(kwargs.get("device")):
            return self._make(function, args, kwargs)
        generator = kwargs.get("generator")
        if function in _MAKERS and isinstance(generator, _Generator):
            raise RuntimeError(
                f"a generator of the device for numbers on the CPU ({_asking_line()})"
            )
        return function(*args, **kwargs)

    @staticmethod
    def _to(x, *how, device=None, dtype=None, non_blocking=False, copy=False):
        for given in how:
            if isinstance(given, torch.Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            else:
                device = given
        if device is not None and torch.device(device).type == "meta":
            return _inner(x).to("meta", dtype)
        found = _moved(x, device, dtype, non_blocking)
        return found.clone() if copy and found is x else found

    @staticmethod
    def _make(function, args, kwargs):
        generator = kwargs.get("generator")
        if generator is not None and not isinstance(generator, _Generator):
            raise RuntimeError(f"a generator of the CPU for the device ({_asking_line()})")
        if function in (torch.tensor, torch.as_tensor):
            if isinstance(args[0], torch.Tensor):
                return _moved(args[0], kwargs["device"], kwargs.get("dtype"), non_blocking=False)
            _machine.wait("a tensor made of numbers")
        wanted = kwargs.pop("requires_grad", False)
        made = function(*_inner(args), **(kwargs | {"device": "cpu"}))
        return _machine.held(made).requires_grad_(wanted)


def _grouped(lists, with_indices=False):
    """Torch's grouping by device, which sees the CPU everywhere; who mixes them is told later."""
    found = torch._C._group_tensors_by_device_and_dtype(lists, with_indices)
    ours = any(isinstance(tensor, Held) for tensor in tree_leaves(lists))
    return {(_machine.device if ours else home, dtype): v for (home, dtype), v in found.items()}


@contextmanager
def pretending(kind: str):
    """Within the block `device=kind` is the pretend device."""
    global _machine
    _machine = Machine(kind)
    grouping = "_group_tensors_by_device_and_dtype"
    with (
        mock.patch.object(torch, "Generator", _Generators),
        mock.patch.object(torch.nn.utils.clip_grad, grouping, _grouped),
        mock.patch.object(sys.modules["torch.optim.optimizer"], grouping, _grouped),
        _Mode(),
    ):
        yield _machine
    _machine = None


def move_module(module: torch.nn.Module) -> torch.nn.Module:
    """Its parameters and buffers on the pretend device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                held = _machine.held(parameter.detach().clone())
                part._parameters[name] = torch.nn.Parameter(held, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _machine.held(buffer.clone())
    return module
