"""`TorchNDBuffer`: arrays read from Zarr as torch tensors, on the GPU where there is one.

>>> with tinc_codec.torch_buffer.enable():
...     tensor = zarr.open_array("brain.zarr", mode="r")[:64]

It needs neither CUDA nor cupy; torch is imported with the first array that is read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr
from zarr.core.buffer import NDBuffer
from zarr.registry import register_ndbuffer

from tinc_codec import config

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy.typing as npt
    import torch

_QUALIFIED_NAME = "tinc_codec.torch_buffer.TorchNDBuffer"
_NAMES = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
    + ("float16", "float32", "float64", "complex64", "complex128")
)
_SIGNED = {"uint16": "int16", "uint32": "int32"}


def enable() -> AbstractContextManager[Any]:
    """Let zarr return torch tensors: for good as a call, for a while in a `with` statement.

    The same as `zarr.config.set({"ndbuffer": "tinc_codec.torch_buffer.TorchNDBuffer"})`. Tensors
    are on the device that `tinc_codec.config` names. It is meant for reading: arrays with this
    codec in the Zarr v3 format can be written too, from NumPy, but most other codecs of zarr
    cannot encode tensors.

    Returns
    -------
    context manager
        Of `zarr.config.set`.
    """
    return zarr.config.set({"ndbuffer": _QUALIFIED_NAME})


class TorchNDBuffer(NDBuffer):
    """A buffer of zarr whose memory is a `torch.Tensor`.

    What torch has no dtype for, or hardly an operation (uint64, strings), stays a NumPy array.
    Tensors are in native byte order and in C order.

    Parameters
    ----------
    array : torch.Tensor or array-like
    """

    _data: Any

    def __init__(self, array: Any) -> None:
        super().__init__(array if _is_tensor(array) else _to_tensor(np.asanyarray(array)))

    @classmethod
    def create(
        cls,
        *,
        shape: Iterable[int],
        dtype: npt.DTypeLike,
        order: Literal["C", "F"] = "C",
        fill_value: Any | None = None,
    ) -> TorchNDBuffer:
        """Make a buffer on the device, of zeros or of one value."""
        buffer = cls.empty(tuple(shape), dtype, order)
        buffer.fill(np.zeros((), dtype)[()] if fill_value is None else fill_value)
        return buffer

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], dtype: npt.DTypeLike, order: Literal["C", "F"] = "C"
    ) -> TorchNDBuffer:
        """Make a buffer on the device whose values are undefined."""
        native = np.dtype(dtype).newbyteorder("=")
        if native.name not in _NAMES:
            return cls(np.zeros(shape, native, order))
        import torch

        made = torch.empty(tuple(shape), dtype=getattr(torch, native.name), device=_device())
        return cls(made)

    @classmethod
    def from_numpy_array(cls, array_like: npt.ArrayLike) -> TorchNDBuffer:
        """Make a buffer from an array; on the CPU it shares the memory where it can."""
        return cls(np.asanyarray(array_like))

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> TorchNDBuffer:
        """Make a buffer of a tensor, which is not copied."""
        return cls(tensor)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's name of the dtype."""
        if not _is_tensor(self._data):
            return self._data.dtype
        return np.dtype(str(self._data.dtype).removeprefix("torch."))

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self._data.shape)

    def as_numpy_array(self) -> npt.NDArray[Any]:
        """Return the values in host memory; on the CPU without a copy."""
        return self._data.cpu().numpy() if _is_tensor(self._data) else self._data

    def as_scalar(self) -> Any:
        """Return the only value as a NumPy scalar."""
        if math.prod(self.shape) != 1:
            raise ValueError(f"a buffer of shape {self.shape} is not a single value")
        return self.as_numpy_array().reshape(())[()]

    def reshape(self, newshape: tuple[int, ...] | Literal[-1]) -> TorchNDBuffer:
        """Return the values in another shape."""
        return type(self)(self._data.reshape(newshape))

    def astype(
        self, dtype: npt.DTypeLike, order: Literal["K", "A", "C", "F"] = "K"
    ) -> TorchNDBuffer:
        """Return the values in another dtype; byte order stays native."""
        native = np.dtype(dtype).newbyteorder("=")
        if not _is_tensor(self._data) or native.name not in _NAMES:
            return type(self)(self.as_numpy_array().astype(native))
        import torch

        return type(self)(self._data.to(getattr(torch, native.name)))

    def transpose(self, axes: Any) -> TorchNDBuffer:
        """Return the values with their axes in another order, reversed for None."""
        order = range(len(self.shape))[::-1] if axes is None else axes
        if not _is_tensor(self._data):
            return type(self)(self._data.transpose(tuple(order)))
        return type(self)(self._data.permute(tuple(order)))

    def copy(self) -> TorchNDBuffer:
        """Return a copy."""
        return type(self)(self._data.clone() if _is_tensor(self._data) else self._data.copy())

    def fill(self, value: Any) -> None:
        """Set all values to one."""
        self[...] = value

    def all_equal(self, other: Any, equal_nan: bool = True) -> bool:
        """Tell whether all values are the same as one; zeros as their bits are."""
        if other is None:
            return False
        if not _is_tensor(self._data):
            return super().all_equal(other, equal_nan)
        value = np.asarray(other).astype(self.dtype)
        if equal_nan and value.dtype.kind in "fc" and np.isnan(value):
            return bool(self._data.isnan().all())
        wanted = _to_tensor(value).to(self._data.device)
        if value.dtype.kind == "f" and value == 0:
            import torch

            as_bits = getattr(torch, f"int{8 * value.dtype.itemsize}")
            return bool((self._data.view(as_bits) == wanted.view(as_bits)).all())
        return bool((self._data == wanted).all())

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: Any) -> TorchNDBuffer:
        if not _is_tensor(self._data):
            return type(self)(np.asanyarray(self._data[key]))
        return type(self)(_plain(self._data)[self._index(key)].view(self._data.dtype))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, NDBuffer):
            value = value.as_ndarray_like()
        if not _is_tensor(self._data):
            self._data[key] = value.cpu().numpy() if _is_tensor(value) else value
            return
        if not _is_tensor(value):
            value = _to_tensor(np.asarray(value).astype(self.dtype))
        value = value.to(device=self._data.device, dtype=self._data.dtype)
        _plain(self._data)[self._index(key)] = _plain(value)

    def _index(self, key: Any) -> Any:
        """Let torch understand what zarr selects with: arrays of integers or bool."""
        import torch

        def one(part: Any) -> Any:
            if isinstance(part, np.integer):
                return int(part)
            if isinstance(part, (np.ndarray, list)):
                return torch.from_numpy(np.array(part)).to(self._data.device)
            return part

        return tuple(map(one, key)) if isinstance(key, tuple) else one(key)


def _is_tensor(array: Any) -> bool:
    # Where torch was never imported, nothing is a tensor.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _to_tensor(array: np.ndarray[Any, Any]) -> Any:
    """Move an array to the device, without a copy where it is there already."""
    if array.dtype.name not in _NAMES:
        return array
    import torch

    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if not native.flags.writeable:
        # Torch has no tensors that cannot be written.
        native = native.copy()
    return torch.from_numpy(native.reshape(array.shape)).to(_device())


def _plain(tensor: Any) -> Any:
    """View unsigned integers, of which torch cannot index all, as signed ones."""
    name = _SIGNED.get(str(tensor.dtype).removeprefix("torch."))
    if name is None:
        return tensor
    import torch

    return tensor.view(getattr(torch, name))


def _device() -> str:
    return config.resolve_device()


register_ndbuffer(TorchNDBuffer, _QUALIFIED_NAME)
