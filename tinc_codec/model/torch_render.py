"""Models -> voxels with torch: chunks of one shape in one launch, within a limit of memory.

A launch is estimated before anything is put on the device: what `launch_bytes` says is at least
what torch's allocator counts, which the tests compare.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.model import evaluate
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.postfilter import REACH, read_postfilter
from tinc_codec.model.render import ChunkModel, read_model
from tinc_codec.model.torch_filtering import filter_on_device, slab_bytes
from tinc_codec.model.torch_wavelet import inverse
from tinc_codec.volume.chunk import FINITE, ChunkInfo, value_mapping

if TYPE_CHECKING:
    from tinc_codec.quantise.corrections import Corrections

_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {"uint16": torch.uint16, "uint32": torch.uint32}
_ALLOCATION_BYTES = 1 << 20
"""Added for each launch: allocators round up, and small tables are not counted."""
_WORKSPACE_BYTES = 32 << 20
"""What matrix products take on a GPU beside their operands, once."""


@dataclass(frozen=True)
class LaunchKey:
    """What chunks have in common that are evaluated in one launch.

    Attributes
    ----------
    batched_shape : tuple of int
        (B, z, y, x).
    dtype : str
        Of the decoded voxels, in native byte order.
    tree : TreeShape or None
    has_features : bool
    filter_width : int
        Of the widest layer of the post-filters, 0 where there are none.
    """

    batched_shape: tuple[int, int, int, int]
    dtype: str
    tree: TreeShape | None
    has_features: bool
    filter_width: int


def launch_bytes(key: LaunchKey, count: int) -> int:
    """Bound what a launch of some chunks holds on the device at its worst, in bytes."""
    voxels = count * math.prod(key.batched_shape)
    dtype = np.dtype(key.dtype)
    # t and what it is mapped to; narrow integers are mapped in place of t.
    wide = 4 if dtype.kind in "iu" and dtype.itemsize < 4 else 8
    least = voxels * (4 + (wide if wide > 4 else 0) + (wide if dtype.kind == "u" else 0))
    worst = least + voxels * dtype.itemsize
    if key.has_features:
        # Coefficients, a copy with the level below in its corner, and what a lifting step makes.
        worst = max(worst, 6 * 4 * voxels)
    if key.tree is not None:
        worst = max(worst, (4 * voxels if key.has_features else 0) + _tree_bytes(key, count))
    if key.filter_width:
        volume = math.prod(n + 2 * REACH for n in key.batched_shape[1:])
        worst = max(worst, 4 * voxels + slab_bytes(volume, key.filter_width))
    return worst + _ALLOCATION_BYTES


def _tree_bytes(key: LaunchKey, count: int) -> int:
    """Bound what `evaluate.evaluate_torch` holds."""
    shape = key.tree
    assert shape is not None
    models = count * key.batched_shape[0]
    positions = shape.leaf_count * math.prod(shape.leaf_size)
    per_model = max(1, positions * shape.max_width)
    together = min(models, max(1, evaluate._SLAB_VALUES // per_model))
    # Whole positions as 64-bit integers, the same scaled, and where each value goes.
    shared = positions * (3 * 8 + 2 * 3 * 8 + 2 * 8)
    activations = together * (4 * 4 * per_model + 4 * 4 * positions)
    padded = sum(
        table.shape[0] * (int(table[:, layer, 2].max()) * (int(table[:, layer, 3].max()) + 1))
        for table in shape.node_tables
        for layer in range(table.shape[1])
    )
    parameters = models * shape.parameter_count * 4 + (8 + 2 * 4 * together) * padded
    return shared + activations + parameters + 2 * 4 * models * positions


@dataclass(frozen=True, eq=False)
class Rendered:
    """A chunk's voxels before corrections, or its model where no launch may hold it.

    Attributes
    ----------
    index : int
        Which of the headers.
    model : ChunkModel
    values : Tensor or None
        Shape (B, z, y, x), in the chunk's dtype (native byte order), on the device or on the
        host; None where the chunk is too large for the limit.
    """

    index: int
    model: ChunkModel
    values: Any


def render_together(
    headers: Sequence[Header], device: str, limit_bytes: int, threads: int, to_host: bool
) -> Iterator[Rendered]:
    """Evaluate chunks in as few launches as a limit allows, in an order that suits them.

    Parameters
    ----------
    headers : sequence of Header
        Each with a model.
    device : str
        A torch device.
    limit_bytes : int
        What one launch may hold on the device.
    threads : int
        CPU threads for entropy decoding.
    to_host : bool
        Whether the values are copied to the host, a launch at a time.

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    models: dict[int, ChunkModel] = {}
    groups: dict[LaunchKey, list[int]] = {}
    for index, header in enumerate(headers):
        if Section.TREE in header.sections:
            # Only the section says which shape its trees have.
            models[index] = _model_of(header)
        groups.setdefault(_key_of(header, models.get(index)), []).append(index)
    with ThreadPoolExecutor(threads) as pool:
        for key, indices in groups.items():
            multiplies = key.tree is not None or key.filter_width > 0
            workspace = _WORKSPACE_BYTES if multiplies and device.startswith("cuda") else 0
            most = most_together(key, len(indices), limit_bytes - workspace)
            for first in range(0, len(indices), max(1, most)):
                part = indices[first : first + max(1, most)]
                unread = [index for index in part if index not in models]
                models.update(
                    zip(unread, pool.map(_model_of, map(headers.__getitem__, unread)), strict=True)
                )
                taken = [models.pop(index) for index in part]
                values: Any = [None] * len(part)
                if most:
                    values = _evaluate(taken, device)
                    values = values.cpu() if to_host else values
                for index, model, value in zip(part, taken, values, strict=True):
                    yield Rendered(index, model, value)


def most_together(key: LaunchKey, count: int, limit_bytes: int) -> int:
    """Return how many of `count` chunks one launch may hold; 0 where not even one fits."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        if launch_bytes(key, middle) <= limit_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _model_of(header: Header) -> ChunkModel:
    model = read_model(header)
    assert model is not None
    return model


def _key_of(header: Header, model: ChunkModel | None) -> LaunchKey:
    tree = None if model is None or model.tree is None else model.tree.shape
    dtype = header.info.dtype.newbyteorder("=").str
    has_features = Section.FEATURES in header.sections
    width = 0
    if Section.POSTFILTER in header.sections:
        width = max(read_postfilter(header.sections[Section.POSTFILTER]).widths)
    return LaunchKey(header.info.batched_shape, dtype, tree, has_features, width)


def _evaluate(models: Sequence[ChunkModel], device: str) -> torch.Tensor:
    """Evaluate models of one key: [chunk, B, z, y, x] in the chunks' dtype, on the device."""
    infos = [model.info for model in models]
    values = None
    if models[0].features is not None:
        values = inverse(_coefficients(models, device))
    trees = [model.tree for model in models if model.tree is not None]
    if trees:
        said = evaluate.evaluate_torch(
            trees[0].shape,
            np.stack([tree.parameters for tree in trees]),
            np.stack([tree.scaling for tree in trees]),
            device,
        )
        values = said if values is None else values.add_(said)
    assert values is not None
    for chunk, model in zip(values, models, strict=True):
        if model.postfilter is not None:
            filter_on_device(chunk, model.postfilter)
    return _denormalise(values, infos)


def _coefficients(models: Sequence[ChunkModel], device: str) -> torch.Tensor:
    """Put the features' coefficients, [chunk, B, z, y, x], on the device; symbols are used up."""
    from tinc_codec.model.coefficients import coefficients_of

    out = torch.empty((len(models), *models[0].info.batched_shape), device=device)
    for target, model in zip(out, models, strict=True):
        assert model.features is not None
        target.copy_(torch.from_numpy(coefficients_of(model.features)))
    return out


def _denormalise(values: torch.Tensor, infos: Sequence[ChunkInfo]) -> torch.Tensor:
    """Twin of `volume.chunk.denormalise` for many chunks of one dtype; t is used up.

    Parameters
    ----------
    values : Tensor of float32
        Shape (chunk, B, z, y, x).
    infos : sequence of ChunkInfo
        Per chunk.
    """
    native = infos[0].dtype.newbyteorder("=")
    # Some devices have no float64, and narrow integers do not need it.
    wide = torch.float32 if native.kind in "iu" and native.itemsize < 4 else torch.float64
    mapping = torch.tensor([value_mapping(info) for info in infos], dtype=torch.float64)
    scale, low, span, value_min, value_max = (
        column.to(values.device, wide).reshape(-1, 1, 1, 1, 1) for column in mapping.T
    )
    t = values.to(wide).clamp_(0.0, 1.0).nan_to_num_(0.0)
    t.mul_(span).add_(low).div_(scale).clamp_(min=value_min, max=value_max)
    if native.kind in "iu":
        t.round_()
    if native.name in _UNSIGNED:
        # Through signed integers of twice the size, which every device converts to.
        doubled = t.to(_SIGNED[2 * native.itemsize])
        return doubled.to(_SIGNED[native.itemsize]).contiguous().view(_UNSIGNED[native.name])
    return t.to(getattr(torch, native.name)).contiguous()


def complete(
    rendered: Rendered, classes: np.ndarray | None, info: ChunkInfo, device: str
) -> torch.Tensor:
    """Put corrections, padding and what is not finite in place, on the device.

    Parameters
    ----------
    rendered : Rendered
        With values on the device, which are used up.
    classes : ndarray of uint8 or None
        Shape `info.valid_extent`, from the mask.
    info : ChunkInfo
    device : str

    Returns
    -------
    Tensor
        Shape `info.shape`, in native byte order: what `codec.decode_chunk` gives.
    """
    values = rendered.values
    if rendered.model.corrections is not None:
        _correct(values, rendered.model.corrections, info)
    return _finish(values, classes, info, device)


def constant(info: ChunkInfo, classes: np.ndarray | None, device: str) -> torch.Tensor:
    """Make a chunk without a model on the device; see `complete`."""
    value = np.zeros((), info.dtype) if info.value_min is None else info.value_min
    bits = torch.full(info.batched_shape, _bits(value), dtype=_bits_dtype(info), device=device)
    return _finish(bits.view(_torch_dtype(info)), classes, info, device)


def _finish(
    values: torch.Tensor, classes: np.ndarray | None, info: ChunkInfo, device: str
) -> torch.Tensor:
    valid = values.reshape(info.valid_extent)
    if classes is not None:
        kinds = torch.from_numpy(classes).to(device)
        for code, value in enumerate((0.0, math.nan, math.inf, -math.inf)):
            if code != FINITE:
                valid.masked_fill_(kinds == code, value)
    if info.pad_value is None:
        return valid
    # As integers, so that the payload of a NaN survives too.
    bits = torch.full(info.shape, _bits(info.pad_value), dtype=_bits_dtype(info), device=device)
    bits[info.valid_slices] = valid.view(_bits_dtype(info))
    return bits.view(_torch_dtype(info))


def _correct(values: torch.Tensor, corrections: "Corrections", info: ChunkInfo) -> None:
    """Correct voxels in place; only those that need it pass through the host."""
    from tinc_codec.quantise.corrections import apply_corrections

    places = torch.from_numpy(corrections.positions).to(values.device)
    flat = values.view(_bits_dtype(info)).reshape(-1)
    some = flat[places].cpu().numpy().view(info.dtype.newbyteorder("="))
    numbers = np.arange(len(corrections), dtype=np.int64)
    apply_corrections(some, replace(corrections, positions=numbers), info)
    flat[places] = torch.from_numpy(some.view(f"i{some.dtype.itemsize}")).to(values.device)


def _bits(value: Any) -> int:
    """Give the bits of a scalar as a signed integer."""
    native = np.asarray(value)
    native = native.astype(native.dtype.newbyteorder("="))
    return int(native.reshape(1).view(f"i{native.dtype.itemsize}")[0])


def _bits_dtype(info: ChunkInfo) -> torch.dtype:
    return _SIGNED[info.dtype.itemsize]


def _torch_dtype(info: ChunkInfo) -> torch.dtype:
    name = info.dtype.newbyteorder("=").name
    return _UNSIGNED.get(name) or getattr(torch, name)
