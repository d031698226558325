"""The sections of a chunk -> its voxels: trees, features, their sum, and corrections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.model.evaluate import add_values, denormalise_torch, evaluate, store_values
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.section import read_tree, tree_parameters
from tinc_codec.volume.chunk import ChunkInfo

if TYPE_CHECKING:
    from tinc_codec.model.features import Features
    from tinc_codec.quantise.corrections import Corrections

_DEVICE_VOXELS = 1 << 28


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree ready to be evaluated.

    Attributes
    ----------
    shape : TreeShape
    parameters : ndarray of float32
        Shape (volume, parameter).
    scaling : ndarray of float32
        Shape (volume, 2): offset and gain.
    """

    shape: TreeShape
    parameters: np.ndarray
    scaling: np.ndarray


@dataclass(frozen=True, eq=False)
class ChunkModel:
    """What stands for the voxels of a chunk: t = tree + features, and what corrects the result.

    References
    ----------
    `docs/format.md` §3.3
    """

    info: ChunkInfo
    tree: Tree | None
    features: "Features | None"
    corrections: "Corrections | None"


def read_model(header: Header) -> ChunkModel | None:
    """Decode a stream's model sections; None where it has none, the chunk being constant.

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    info, sections = header.info, header.sections
    volumes, z, y, x = info.batched_shape
    tree = features = corrections = None
    if Section.TREE in sections:
        section = read_tree(sections[Section.TREE], (z, y, x), volumes)
        scaling = np.array([section.offsets, section.gains], dtype=np.float32).T
        tree = Tree(section.shape, tree_parameters(section, volumes), scaling)
    if Section.FEATURES in sections:
        from tinc_codec.model.features import read_features

        features = read_features(sections[Section.FEATURES], (z, y, x), volumes)
    if Section.CORRECTIONS in sections:
        from tinc_codec.quantise.corrections import read_corrections

        corrections = read_corrections(sections[Section.CORRECTIONS], info)
    if tree is None and features is None:
        return None
    return ChunkModel(info, tree, features, corrections)


def render(
    models: Sequence[ChunkModel], views: Sequence[np.ndarray], device: str, threads: int
) -> None:
    """Decode models into arrays.

    Parameters
    ----------
    models : sequence of ChunkModel
        Their features' symbols are used up.
    views : sequence of ndarray
        Per model (B, z, y, x) of the chunk's dtype, any strides.
    device : str
        A torch device; trees of one shape are evaluated together on a GPU.
    threads : int
    """
    together: dict[TreeShape, list[tuple[ChunkModel, np.ndarray]]] = {}
    for model, view in zip(models, views, strict=True):
        if device != "cpu" and model.tree is not None and model.features is None:
            together.setdefault(model.tree.shape, []).append((model, view))
        else:
            _render_one(model, view, device, threads)
    for shape, pairs in together.items():
        _render_trees(shape, pairs, device)
    for model, view in zip(models, views, strict=True):
        if model.corrections is not None:
            from tinc_codec.quantise.corrections import apply_corrections

            apply_corrections(view, model.corrections, model.info)


def _render_one(model: ChunkModel, view: np.ndarray, device: str, threads: int) -> None:
    tree, info = model.tree, model.info
    if model.features is None:
        assert tree is not None
        evaluate(tree.shape, tree.parameters, tree.scaling, info, view, device, threads)
    elif device == "cpu":
        store_values(model_values(model, threads), info, view, threads)
    else:
        values = _values_torch(model, device)
        np.copyto(view, denormalise_torch(values, info).cpu().numpy(), casting="unsafe")


def model_values(model: ChunkModel, threads: int) -> np.ndarray:
    """Evaluate a model on the CPU: t as float32 [B, z, y, x], not clipped."""
    if model.features is None:
        values = np.zeros(model.info.batched_shape, dtype=np.float32)
    else:
        from tinc_codec.model.features import coefficients_of
        from tinc_codec.model.wavelet import inverse

        values = inverse(coefficients_of(model.features), threads)
    if model.tree is not None:
        tree = model.tree
        add_values(tree.shape, tree.parameters, tree.scaling, values, threads)
    return values


def _values_torch(model: ChunkModel, device: str) -> Any:
    import torch

    from tinc_codec.model.evaluate import evaluate_torch
    from tinc_codec.model.features import coefficients_of
    from tinc_codec.model.torch_wavelet import inverse

    assert model.features is not None
    values = inverse(torch.from_numpy(coefficients_of(model.features)).to(device))
    if model.tree is not None:
        tree = model.tree
        values += evaluate_torch(tree.shape, tree.parameters[None], tree.scaling[None], device)[0]
    return values


def _render_trees(
    shape: TreeShape, pairs: list[tuple[ChunkModel, np.ndarray]], device: str
) -> None:
    from tinc_codec.model.evaluate import evaluate_batch

    # Bounded, so that the decoded float32 of a batch stays within 1 GiB of the device.
    most = max(1, _DEVICE_VOXELS // math.prod(pairs[0][1].shape))
    for first in range(0, len(pairs), most):
        batch = pairs[first : first + most]
        trees = [model.tree for model, _ in batch if model.tree is not None]
        evaluate_batch(
            shape,
            [tree.parameters for tree in trees],
            [tree.scaling for tree in trees],
            [model.info for model, _ in batch],
            [view for _, view in batch],
            device,
        )
