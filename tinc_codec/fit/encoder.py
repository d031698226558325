"""Normalised volumes -> tree sections that fit their byte limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinc_codec.entropy.weights import encode_symbols
from tinc_codec.errors import TargetError
from tinc_codec.fit.plan import fit_plan
from tinc_codec.fit.trainer import Trainer, tensors_of
from tinc_codec.model.budget import allocate_nodes, node_importance, plan_shape
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.section import TreeSection, fixed_bytes, write_tree
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.search import QuantisedTensor, StepSearch
from tinc_codec.volume.partition import to_blocks

_TARGET_DEVIATION = 0.5
"""Standard deviation of the values that networks are fitted to."""
_CODER_BYTES = 5
"""At most so many bytes does the range coder end with beyond the symbols' information."""
_BATCH_VOXELS = 1 << 26


@dataclass(frozen=True)
class _Task:
    """One chunk's part in a batch."""

    index: int
    volumes: np.ndarray
    classes: np.ndarray | None
    shape: TreeShape
    limit_bytes: int

    @property
    def symbol_bits(self) -> float:
        """Bits for the coded symbols."""
        fixed = fixed_bytes(self.shape, len(self.volumes))
        return max(0.0, 8.0 * (self.limit_bytes - fixed - _CODER_BYTES))


def encode_trees(
    volumes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray | None],
    limits: Sequence[int],
    params: EncodingParams,
    device: str,
    threads: int,
) -> list[bytes]:
    """Fit, quantise and code chunks; those with trees of one shape share a batch.

    Parameters
    ----------
    volumes : sequence of ndarray of float32
        Per chunk (B, z, y, x), in [0, 1].
    classes : sequence of (ndarray of uint8 or None)
        Per chunk, as many voxels: not 0 where a voxel does not count.
    limits : sequence of int
        Per chunk, bytes for its section, at least `model.budget.smallest_section`.
    params : EncodingParams
    device : str
        A torch device.
    threads : int
        CPU threads to use.

    Returns
    -------
    list of bytes
    """
    groups: dict[TreeShape, list[_Task]] = {}
    for index, (values, kinds, limit) in enumerate(zip(volumes, classes, limits, strict=True)):
        batched: tuple[int, int, int, int] = values.shape
        shape = plan_shape(batched, limit, params)
        if params.node_split in ("aoi", "variance") and shape.levels > 1:
            shape = allocate_nodes(shape, node_importance(shape, values, params.node_split))
        task = _Task(index, values, kinds, shape, limit)
        groups.setdefault(shape, []).append(task)
    sections: dict[int, bytes] = {}
    for shape, tasks in groups.items():
        most = max(1, _BATCH_VOXELS // math.prod(tasks[0].volumes.shape))
        for first in range(0, len(tasks), most):
            batch = tasks[first : first + most]
            sections.update(_encode_batch(shape, batch, params, device, threads))
    return [sections[index] for index in range(len(volumes))]


def _encode_batch(
    shape: TreeShape, tasks: list[_Task], params: EncodingParams, device: str, threads: int
) -> dict[int, bytes]:
    offsets, gains, blocks, weights = [], [], [], []
    voxels = math.prod(shape.leaf_size)
    any_classes = any(task.classes is not None for task in tasks)
    for task in tasks:
        counted = np.ones(task.volumes.shape, dtype=np.uint8)
        if task.classes is not None:
            counted = (task.classes == 0).astype(np.uint8).reshape(task.volumes.shape)
        offset, gain = standardise(task.volumes, counted)
        offsets.append(offset)
        gains.append(gain)
        scale = np.where(gain > 0, gain, 1.0)[:, None, None, None]
        values = (task.volumes - offset[:, None, None, None]) / scale
        blocks.append(to_blocks(values, shape.leaf_origins, shape.leaf_extents, voxels))
        if any_classes:
            weights.append(to_blocks(counted, shape.leaf_origins, shape.leaf_extents, voxels))
    fitted = Trainer(
        shape,
        np.stack(blocks),
        np.stack(weights) if any_classes else None,
        np.array([max(64.0, task.symbol_bits) for task in tasks]),
        fit_plan(shape, params),
        device,
        threads,
    ).run()
    return {
        task.index: _fill_limit(task, fitted.parameters[i], fitted.codes[i], offsets[i], gains[i])
        for i, task in enumerate(tasks)
    }


def standardise(volumes: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find per volume the mean and the gain that give its values a fixed deviation.

    Returns
    -------
    offset, gain : ndarray of float32
        Shape (B,); the network learns (volume - offset) / gain. A constant volume has gain 0.
    """
    offsets, gains = [], []
    for volume, used in zip(volumes, counted, strict=True):
        values = volume[used != 0]
        offsets.append(values.mean(dtype=np.float64) if values.size else 0.0)
        gains.append(values.std(dtype=np.float64) / _TARGET_DEVIATION if values.size else 0.0)
    return np.array(offsets, dtype=np.float32), np.array(gains, dtype=np.float32)


def _fill_limit(
    task: _Task,
    parameters: np.ndarray,
    codes: np.ndarray,
    offset: np.ndarray,
    gain: np.ndarray,
) -> bytes:
    """Round the weights with the finest steps whose section fits."""
    search = StepSearch(tensors_of(task.shape, parameters), codes.tolist())
    position = search.finest_within(task.symbol_bits)
    while position is not None:
        section = _section(task.shape, search.at(position), offset, gain)
        if len(section) <= task.limit_bytes:
            return section
        position += 1
        if search.bits_at(position) == 0.0:
            break
    raise TargetError(
        f"a tree for a chunk of {task.volumes.shape} voxels does not fit {task.limit_bytes} bytes; "
        "use larger chunks or a smaller ratio"
    )


def _section(
    shape: TreeShape, tensors: list[QuantisedTensor], offset: np.ndarray, gain: np.ndarray
) -> bytes:
    models = tuple(tensor.model for tensor in tensors)
    return write_tree(
        TreeSection(
            shape=shape,
            offsets=tuple(offset.tolist()),
            gains=tuple(gain.tolist()),
            step_codes=tuple(tensor.step_code for tensor in tensors),
            models=models,
            coded=encode_symbols([tensor.symbols for tensor in tensors], models),
        )
    )
