"""Normalised volumes -> tree sections that fit their byte limits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinc_codec.entropy.weights import encode_symbols
from tinc_codec.errors import TargetError
from tinc_codec.fit.plan import fit_plan
from tinc_codec.fit.trainer import FitResult, Trainer, tensors_of
from tinc_codec.model.budget import allocate_nodes, is_possible, node_importance, plan_shape
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.section import TreeSection, fixed_bytes, write_tree
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.search import QuantisedTensor, StepSearch
from tinc_codec.volume.partition import to_blocks

_TARGET_DEVIATION = 0.5
"""Standard deviation of the values that networks are fitted to."""
_CODER_BYTES = 5
"""At most so many bytes does the range coder end with beyond the symbols' information."""
_LEAST_BITS = 64.0
_REFINEMENTS = 4
_BATCH_VOXELS = 1 << 26
"""Voxels fitted together at most: 256 MiB of float32."""


@dataclass(frozen=True)
class Task:
    """One chunk's part in a batch.

    Attributes
    ----------
    index : int
        Its place among the chunks of the call.
    volumes : ndarray of float32
        Shape (B, z, y, x), in [0, 1].
    classes : ndarray of uint8 or None
        As many voxels; not 0 where a voxel does not count.
    shape : TreeShape
    limit_bytes : int
        For its section.
    """

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
    groups: dict[TreeShape, list[Task]] = {}
    for index, (values, kinds, limit) in enumerate(zip(volumes, classes, limits, strict=True)):
        batched: tuple[int, int, int, int] = values.shape
        shape = plan_shape(batched, limit, params)
        if params.node_split in ("aoi", "variance") and shape.levels > 1:
            unequal = allocate_nodes(shape, node_importance(shape, values, params.node_split))
            if is_possible(unequal, len(values), limit):
                shape = unequal
        task = Task(index, values, kinds, shape, limit)
        groups.setdefault(shape, []).append(task)
    sections: dict[int, bytes] = {}
    for shape, tasks in groups.items():
        most = max(1, _BATCH_VOXELS // math.prod(tasks[0].volumes.shape))
        for first in range(0, len(tasks), most):
            batch = tasks[first : first + most]
            sections.update(_encode_batch(shape, batch, params, device, threads))
    return [sections[index] for index in range(len(volumes))]


def _encode_batch(
    shape: TreeShape, tasks: list[Task], params: EncodingParams, device: str, threads: int
) -> dict[int, bytes]:
    fitted, scalings = fit_batch(shape, tasks, params, device, threads)
    return {
        task.index: fill_limit(task, fitted.parameters[i], fitted.codes[i], scalings[i])
        for i, task in enumerate(tasks)
    }


def fit_batch(
    shape: TreeShape, tasks: Sequence[Task], params: EncodingParams, device: str, threads: int
) -> tuple[FitResult, list[np.ndarray]]:
    """Fit chunks that share a shape.

    Returns
    -------
    FitResult
    list of ndarray of float32
        Per chunk, its scaling: see `standardise`.
    """
    voxels = math.prod(shape.leaf_size)
    any_classes = any(task.classes is not None for task in tasks)
    scalings, blocks, weights = [], [], []
    for task in tasks:
        counted = np.ones(task.volumes.shape, dtype=np.uint8)
        if task.classes is not None:
            counted = (task.classes == 0).astype(np.uint8).reshape(task.volumes.shape)
        scaling = standardise(task.volumes, counted)
        scalings.append(scaling)
        offset, gain = scaling.T[:, :, None, None, None]
        values = (task.volumes - offset) / np.where(gain > 0, gain, np.float32(1))
        blocks.append(to_blocks(values, shape.leaf_origins, shape.leaf_extents, voxels))
        if any_classes:
            weights.append(to_blocks(counted, shape.leaf_origins, shape.leaf_extents, voxels))
    trainer = Trainer(
        shape,
        np.stack(blocks),
        np.stack(weights) if any_classes else None,
        np.array([max(_LEAST_BITS, task.symbol_bits) for task in tasks]),
        fit_plan(shape, params),
        device,
        threads,
    )
    return trainer.run(), scalings


def standardise(volumes: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Find per volume the mean and the gain that give its values a fixed deviation.

    Returns
    -------
    ndarray of float32
        Shape (B, 2), offset and gain: the network learns (volume - offset) / gain. A constant
        volume has gain 0.
    """
    scaling = np.zeros((len(volumes), 2), dtype=np.float32)
    for row, volume, used in zip(scaling, volumes, counted, strict=True):
        values = volume[used != 0]
        if values.size:
            row[0] = values.mean(dtype=np.float64)
            row[1] = values.std(dtype=np.float64) / _TARGET_DEVIATION
    return scaling


def fill_limit(task: Task, parameters: np.ndarray, codes: np.ndarray, scaling: np.ndarray) -> bytes:
    """Round a fit's weights with the finest steps whose section fits, and write the section.

    Raises
    ------
    TargetError
        If none fits.
    """
    search = StepSearch(tensors_of(task.shape, parameters), codes.tolist())
    best = None
    bits = task.symbol_bits
    for _ in range(_REFINEMENTS):
        position = search.finest_within(bits)
        if position is None:
            break
        section = _section(task.shape, search.at(position), scaling)
        spare_bytes = task.limit_bytes - len(section)
        if spare_bytes >= 0 and (best is None or len(section) > len(best)):
            best = section
        # `symbol_bits` is what is left at worst; what the tensors' codes really took is known now.
        bits += 8.0 * spare_bytes
    if best is not None:
        return best
    # With steps of 1 some weights may still not round to 0: the volumes' means fit all the same.
    section = _section(task.shape, search.zeros(), scaling)
    if len(section) <= task.limit_bytes:
        return section
    raise TargetError(
        f"a tree for a chunk of {task.volumes.shape} voxels does not fit {task.limit_bytes} bytes; "
        "use larger chunks or a smaller ratio"
    )


def _section(shape: TreeShape, tensors: list[QuantisedTensor], scaling: np.ndarray) -> bytes:
    models = tuple(tensor.model for tensor in tensors)
    return write_tree(
        TreeSection(
            shape=shape,
            offsets=tuple(scaling[:, 0].tolist()),
            gains=tuple(scaling[:, 1].tolist()),
            step_codes=tuple(tensor.step_code for tensor in tensors),
            models=models,
            coded=encode_symbols([tensor.symbols for tensor in tensors], models),
        )
    )
