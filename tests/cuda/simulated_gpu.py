"""A simulated CUDA device, for machines without one: tensors that say ``cuda:0`` and are computed on the CPU.

The numbers are real, so that whole trainings run.  As on a device, operands must be on one device, generators must be
of the device on which they draw, NumPy reads no tensor that is not on the CPU, and a graph repeats operations but not
the Python around them.  Not simulated: kernels with their rounding and speed, streams side by side, other threads, and
autocast, which has no effect.  What torch does in C++ is checked by its arguments alone, and not every wait is seen.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")

_ON_TWO_DEVICES = {"copy_", "_foreach_copy_", "set_", "__set__", "swap_tensors"}
"""Functions that copy from one device to the other."""
_WAITING = {
    "item", "tolist", "cpu", "nonzero", "argwhere", "__bool__", "__float__", "__int__", "__index__", "masked_select",
    "unique", "equal", "allclose", "is_nonzero",
}  # fmt: skip
"""Functions that need a value, for which the CPU waits; :func:`_moved` waits as well."""
_RANDOM = {
    "bernoulli", "bernoulli_", "dropout", "exponential_", "multinomial", "normal", "normal_", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "random_", "randperm", "uniform_",
}  # fmt: skip
"""Functions that draw from the device's default generator if no other is given."""


class OtherDevice(RuntimeError):
    """Operands are on two devices."""


class _OnGPU(torch.Tensor):
    """A tensor on the simulated device."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def _on_gpu(value: torch.Tensor) -> torch.Tensor:
    """The same values, as a tensor on the device; a part of the same graph of gradients."""
    if isinstance(value, _OnGPU):
        return value
    if value.is_leaf:
        return torch.Tensor._make_subclass(_OnGPU, value.detach(), value.requires_grad)
    return value.as_subclass(_OnGPU)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class _Simulation(TorchFunctionMode):
    """Follows every call of torch: which device its operands are on, and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_debug_mode = 0
        self.rng_state = torch.Generator().get_state()
        """State of the device's default generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func.__name__
        if name == "__get__":
            return _attribute(func, *args)
        if name in ("_parse_to", "_has_compatible_shallow_copy_type"):
            return func(*args, **kwargs)
        if name == "__deepcopy__":
            return _deep_copy(*args)
        if name == "pin_memory":
            return args[0]
        found = _tensors((args, kwargs))
        on_gpu = any(isinstance(each, _OnGPU) for each in found)
        if on_gpu and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if on_gpu and (name in _WAITING or (name == "__getitem__" and _is_mask(args[1]))):
            self._wait()
        if name in ("to", "cuda", "cpu"):
            moved = _moved(func, name, args, kwargs)
            if isinstance(moved, _OnGPU) != isinstance(args[0], _OnGPU) and not kwargs.get("non_blocking"):
                self._wait()
            return moved
        if on_gpu and name not in _ON_TWO_DEVICES:
            _check_devices(name, args, found)
        if name == "__getitem__":
            on_gpu = isinstance(args[0], _OnGPU)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
            on_gpu = target.type == "cuda"
            kwargs["device"] = CPU if on_gpu else target
        _check_generator(name, kwargs.get("generator"), on_gpu)
        if not on_gpu:
            return func(*args, **{**kwargs, "pin_memory": False} if "pin_memory" in kwargs else kwargs)
        if name == "empty_like":  # values that a capture may read, as it computes here
            func = torch.zeros_like
        with self._default_generator() if name in _RANDOM else contextlib.nullcontext():
            result = func(*args, **kwargs)
        own = {id(each) for each in found}
        return pytree.tree_map_only(torch.Tensor, lambda one: one if id(one) in own else _on_gpu(one), result)

    def _wait(self) -> None:
        if _Stream.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.sync_debug_mode:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=3)

    @contextlib.contextmanager
    def _default_generator(self) -> Iterator[None]:
        before = torch.get_rng_state()
        torch.set_rng_state(self.rng_state)
        try:
            yield
        finally:
            self.rng_state = torch.get_rng_state()
            torch.set_rng_state(before)


def _attribute(func: Any, tensor: torch.Tensor, *rest: Any) -> Any:
    """``tensor.device``, ``tensor.grad`` and the like."""
    on_gpu, which = isinstance(tensor, _OnGPU), getattr(func.__self__, "__name__", "")
    if on_gpu and which in ("device", "is_cuda", "is_cpu"):
        return {"device": GPU, "is_cuda": True, "is_cpu": False}[which]
    value = func(tensor, *rest)
    return _on_gpu(value) if on_gpu and isinstance(value, torch.Tensor) else value


def _deep_copy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
    if id(tensor) not in memo:
        copy, is_parameter = tensor.detach().as_subclass(torch.Tensor).clone(), isinstance(tensor, torch.nn.Parameter)
        if isinstance(tensor, _OnGPU):
            copy = torch.Tensor._make_subclass(_OnGPU, copy, tensor.requires_grad)
            copy._is_param = is_parameter
        elif is_parameter:
            copy = torch.nn.Parameter(copy, tensor.requires_grad)
        memo[id(tensor)] = copy
    return memo[id(tensor)]


def _moved(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """``Tensor.to``, ``Tensor.cuda`` and ``Tensor.cpu``; between CPU and device by a copy."""
    tensor, *rest = args
    source = GPU if isinstance(tensor, _OnGPU) else CPU
    target = {"cuda": GPU, "cpu": CPU}.get(name, source)
    if name == "cuda":
        func, rest = torch.Tensor.to, []
    elif rest and isinstance(rest[0], torch.Tensor):
        target = GPU if isinstance(rest[0], _OnGPU) else CPU
    elif rest and isinstance(rest[0], str | torch.device):
        target = torch.device(rest[0])
        rest[0] = CPU if target.type == "cuda" else target
    elif kwargs.get("device") is not None:
        target = torch.device(kwargs["device"])
        kwargs["device"] = CPU if target.type == "cuda" else target
    if target.type == source.type:
        result = func(tensor, *rest, **kwargs)
        return _on_gpu(result) if source == GPU and result is not tensor else result
    result = func(tensor.as_subclass(torch.Tensor), *rest, **kwargs)
    result = result.clone() if result.data_ptr() == tensor.data_ptr() else result
    return _on_gpu(result) if target.type == "cuda" else result


def _is_mask(index: Any) -> bool:
    """Whether an index selects by truth values, whose number decides the size of the result."""
    return any(each.dtype == torch.bool for each in _tensors(index))


def _check_devices(name: str, args: Any, found: list[torch.Tensor]) -> None:
    """Torch allows scalars from the CPU, CPU tensors as an index, and a scalar from the device as one.

    Without tensors as indices, ``x[index] = value`` copies.
    """
    elsewhere = [each for each in found if not isinstance(each, _OnGPU) and each.dim()]
    if name in ("__getitem__", "__setitem__"):
        indices = _tensors(args[1])
        if name == "__setitem__" and not indices:
            elsewhere = []
        elif isinstance(args[0], _OnGPU):
            elsewhere = [each for each in elsewhere if not any(each is index for index in indices)]
        elif all(index.dim() == 0 or not isinstance(index, _OnGPU) for index in indices):
            elsewhere = []
    if elsewhere:
        shapes = ", ".join(str(tuple(each.shape)) for each in elsewhere)
        raise OtherDevice(f"{name}: expected all tensors to be on the same device, but {shapes} is on the CPU")


def _check_generator(name: str, generator: torch.Generator | None, on_gpu: bool) -> None:
    if generator is not None and (generator.device.type == "cuda") != on_gpu:
        raise OtherDevice(
            f"{name}: expected a generator of the {'GPU' if on_gpu else 'CPU'}, got one of another device"
        )


class _Generator(torch.Generator):
    """A generator of the CPU that says which device it is for."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls)
        made._device = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self._device


class _Autocast(torch.autocast):
    """Without effect."""

    def __init__(self, device_type: str, *_args: Any, **_options: Any):
        super().__init__("cpu", enabled=False)


class _Stream:
    """A queue of work; all of it is done at once, in the order of the calls."""

    capturing = False

    def __init__(self, device: torch.device | None = None):
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return self.capturing


class _Graph(TorchDispatchMode):
    """The operations of a step with their tensors: :meth:`replay` repeats them on the same ones.

    They are computed at the capture as well, unlike on a device; :meth:`undo` restores what they have written.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._before: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            place = (tensor.data_ptr(), tensor.shape, tensor.stride())
            self._before.setdefault(place, (tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        if all(place.alias_info is None or place.alias_info.is_write for place in func._schema.returns):  # not a view
            self._calls.append((func, args, kwargs, _tensors(result)))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, before in reversed(self._before.values()):
            tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        with torch._C.DisableTorchFunction():
            for func, args, kwargs, results in self._calls:
                for result, again in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if result.data_ptr() != again.data_ptr():
                        result.copy_(again)


@contextlib.contextmanager
def _capture(graph: _Graph, **_options: Any) -> Iterator[None]:
    _Stream.capturing = True
    try:
        with graph:
            yield
    finally:
        _Stream.capturing = False
        graph.undo()


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation changes in place."""
    places = {place.name: place for place in func._schema.arguments}
    given = [*zip(places.values(), args, strict=False), *((places[name], value) for name, value in kwargs.items())]
    written = [value for place, value in given if place.alias_info is not None and place.alias_info.is_write]
    if func._schema.name == "aten::native_batch_norm":  # running statistics, of which the schema says nothing
        written += args[3:5]
    return _tensors(written)


@contextlib.contextmanager
def simulated_gpu() -> Iterator[None]:
    """Inside ``with``, torch has one CUDA device."""
    simulation = _Simulation()
    both: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_stream": lambda device=None: _Stream(),
        "synchronize": lambda device=None: None,
    }
    cuda: dict[str, Callable[..., Any]] = {
        "get_device_name": lambda device=None: "simulated GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: _Stream.capturing,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 2**20,
        "empty_cache": lambda: None,
        "device": lambda device: contextlib.nullcontext(),
        "Stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": _Graph,
        "graph": _capture,
        "get_rng_state": lambda device=None: simulation.rng_state.clone(),
        "set_rng_state": lambda state, device=None: setattr(simulation, "rng_state", state.clone()),
        "get_sync_debug_mode": lambda: simulation.sync_debug_mode,
        "set_sync_debug_mode": lambda mode: setattr(simulation, "sync_debug_mode", int(mode not in (0, "default"))),
    }
    accelerator: dict[str, Callable[..., Any]] = {
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: 0,
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, simulation:
        for place, functions in ((torch.cuda, both | cuda), (torch.accelerator, both | accelerator)):
            for name, function in functions.items():
                patch.setattr(place, name, function)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "autocast", _Autocast)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to keeps the tensors' type then
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
