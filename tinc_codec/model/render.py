"""The sections of a chunk -> its voxels: trees, features, their sum, and corrections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.model.evaluate import add_values, evaluate, store_values
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.section import read_tree, tree_parameters
from tinc_codec.volume.chunk import ChunkInfo

if TYPE_CHECKING:
    from tinc_codec.model.features import Features
    from tinc_codec.model.postfilter import PostFilter
    from tinc_codec.quantise.corrections import Corrections
    from tinc_codec.quantise.lattice import Lattice


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
    """What stands for the voxels of a chunk: t = tree + features, filtered, and what corrects it.

    Or a lattice, with which there is nothing else.

    References
    ----------
    `docs/format.md` §3.3
    """

    info: ChunkInfo
    tree: Tree | None
    features: "Features | None"
    postfilter: "PostFilter | None"
    corrections: "Corrections | None"
    lattice: "Lattice | None" = None


def read_model(
    header: Header, threads: int = 1, *, with_features: bool = True
) -> ChunkModel | None:
    """Decode a stream's model sections; None where it has none, the chunk being constant.

    Features may be left out: the model's are None then.

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    info, sections = header.info, header.sections
    volumes, z, y, x = info.batched_shape
    tree = features = postfilter = corrections = None
    if Section.LATTICE in sections:
        return ChunkModel(info, None, None, None, None, _read_lattice(header, threads))
    if Section.TREE in sections:
        section = read_tree(sections[Section.TREE], (z, y, x), volumes)
        scaling = np.array([section.offsets, section.gains], dtype=np.float32).T
        tree = Tree(section.shape, tree_parameters(section, volumes), scaling)
    if with_features and Section.FEATURES in sections:
        from tinc_codec.model.features import read_features

        features = read_features(sections[Section.FEATURES], (z, y, x), volumes, threads)
    if Section.POSTFILTER in sections:
        from tinc_codec.model.postfilter import read_postfilter

        postfilter = read_postfilter(sections[Section.POSTFILTER])
    if Section.CORRECTIONS in sections:
        from tinc_codec.quantise.corrections import read_corrections

        corrections = read_corrections(sections[Section.CORRECTIONS], info)
    if tree is None and Section.FEATURES not in sections:
        return None
    return ChunkModel(info, tree, features, postfilter, corrections)


def _read_lattice(header: Header, threads: int) -> "Lattice":
    from tinc_codec.quantise.lattice_section import read_lattice
    from tinc_codec.volume.mask import decode_classes

    classes = None
    if Section.MASK in header.sections:
        classes = decode_classes(header.sections[Section.MASK], header.info.valid_extent)
    return read_lattice(header.sections[Section.LATTICE], header.info, classes, threads)


def render(models: Sequence[ChunkModel], views: Sequence[np.ndarray], threads: int) -> None:
    """Decode models into arrays on the CPU; `model.torch_render` is its twin for GPUs.

    Parameters
    ----------
    models : sequence of ChunkModel
        Their features' symbols are used up.
    views : sequence of ndarray
        Per model (B, z, y, x) of the chunk's dtype, any strides.
    threads : int
    """
    for model, view in zip(models, views, strict=True):
        tree, info = model.tree, model.info
        if model.lattice is not None:
            from tinc_codec.quantise.lattice import from_lattice

            from_lattice(model.lattice, info, view)
        elif model.features is None and model.postfilter is None:
            assert tree is not None
            evaluate(tree.shape, tree.parameters, tree.scaling, info, view, threads)
        else:
            store_values(model_values(model, threads), info, view, threads)
        correct(model, view)


def correct(model: ChunkModel, view: np.ndarray) -> None:
    """Apply a model's corrections to decoded voxels, (B, z, y, x), in place."""
    if model.corrections is not None:
        from tinc_codec.quantise.corrections import apply_corrections

        apply_corrections(view, model.corrections, model.info)


def model_values(model: ChunkModel, threads: int) -> np.ndarray:
    """Evaluate a model on the CPU: t as float32 [B, z, y, x], not clipped."""
    if model.features is None:
        values = np.zeros(model.info.batched_shape, dtype=np.float32)
    else:
        from tinc_codec.model.coefficients import coefficients_of
        from tinc_codec.model.wavelet import inverse

        values = inverse(coefficients_of(model.features), threads)
    if model.tree is not None:
        tree = model.tree
        add_values(tree.shape, tree.parameters, tree.scaling, values, threads)
    if model.postfilter is not None:
        from tinc_codec.model.filtering import apply_postfilter

        values = apply_postfilter(values, model.postfilter, threads)
    return values
