"""Hypothesis strategies for chunks, masks and streams, shared by all tests."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinc_codec.bitstream.header import Header
from tinc_codec.bitstream.sections import Section
from tinc_codec.volume.chunk import ChunkInfo, analyse, is_constant

DTYPE_NAMES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")

seeds = st.integers(0, 2**32 - 1)


@st.composite
def dtypes(draw: st.DrawFn, kinds: str = "uif") -> np.dtype:
    """Supported dtypes in both byte orders."""
    name = draw(st.sampled_from([name for name in DTYPE_NAMES if name[0] in kinds]))
    return np.dtype(draw(st.sampled_from("<>")) + name)


@st.composite
def shapes(draw: st.DrawFn, max_voxels: int = 600, max_ndim: int = 5) -> tuple[int, ...]:
    """Shapes of 1 to `max_ndim` axes, size-1 and odd axes among them."""
    ndim = draw(st.integers(1, max_ndim))
    shape, room = [], max_voxels
    for _ in range(ndim):
        n = draw(st.integers(1, min(room, 40)))
        shape.append(n)
        room //= n
    return tuple(draw(st.permutations(shape)))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    waves = np.zeros(shape)
    for axis, n in enumerate(shape):
        phase = np.linspace(0, rng.uniform(1, 9), n) + rng.uniform(0, 6)
        waves = waves + np.sin(phase).reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return waves


def _contents(kind: str, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        low, high = float(limits.min), float(limits.max)
    else:
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if kind == "noise":
        if dtype.kind == "f":
            return rng.standard_normal(shape) * 100
        return rng.integers(int(low), int(high), shape, endpoint=True)
    if kind == "smooth":
        return _smooth(rng, shape) * 10 + 50
    if kind == "extremes":
        return rng.choice([low, high, 0, 1], shape)
    if kind == "tiny":
        return rng.integers(0, 3, shape) * (float(limits.smallest_subnormal) if low < -1e3 else 1)
    return np.full(shape, rng.choice([low, high, 0.0, -0.0, 1.0, 100.0]))


@st.composite
def arrays(
    draw: st.DrawFn,
    kinds: str = "uif",
    max_voxels: int = 600,
    max_ndim: int = 5,
    allow_not_finite: bool = True,
    allow_padding: bool = True,
    allow_views: bool = True,
) -> np.ndarray:
    """Chunks as a store may hand them over: any layout, content, padding and NaN pattern."""
    dtype = draw(dtypes(kinds))
    shape = draw(shapes(max_voxels, max_ndim))
    contents = ["noise", "smooth", "extremes", "constant"] + ["tiny"] * (dtype.kind == "f")
    rng = np.random.default_rng(draw(seeds))
    array = np.asarray(_contents(draw(st.sampled_from(contents)), rng, shape, dtype)).astype(dtype)
    if allow_not_finite and dtype.kind == "f" and draw(st.booleans()):
        values = draw(st.sampled_from([[np.nan], [np.inf], [-np.inf], [np.nan, np.inf, -np.inf]]))
        share = draw(st.sampled_from([0.02, 0.5, 1.0]))
        chosen = rng.random(shape) < share
        if draw(st.booleans()):
            chosen = _smooth(rng, shape) > 0
        array[chosen] = rng.choice(values, np.count_nonzero(chosen)).astype(dtype)
    if allow_padding and draw(st.booleans()):
        array = _pad_far_end(array, rng, allow_not_finite)
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed"] if allow_views else ["C", "F"]))
    if layout == "strided":
        wide = np.zeros(tuple(2 * n for n in shape), dtype)
        every_other = wide[(slice(None, None, 2),) * len(shape)]
        every_other[...] = array
        return every_other
    if layout == "reversed":
        return np.ascontiguousarray(array)[(slice(None, None, -1),) * len(shape)]
    return np.asarray(array, order="F" if layout == "F" else "C")


def _pad_far_end(array: np.ndarray, rng: np.random.Generator, allow_not_finite: bool) -> np.ndarray:
    values = [0, 1, 77] + [-0.0, np.nan, np.inf] * (array.dtype.kind == "f" and allow_not_finite)
    padded = np.full(array.shape, values[rng.integers(len(values))], array.dtype)
    kept = tuple(slice(0, int(rng.integers(1, n, endpoint=True))) for n in array.shape)
    padded[kept] = array[kept]
    return padded


@st.composite
def classes(draw: st.DrawFn, max_voxels: int = 600) -> np.ndarray:
    """Masks: smooth regions, slabs, scattered voxels, noise, one class."""
    shape = draw(shapes(max_voxels))
    rng = np.random.default_rng(draw(seeds))
    codes = draw(st.sampled_from([[1], [2], [3], [1, 2], [1, 2, 3]]))
    kind = draw(st.sampled_from(["smooth", "few", "noise", "all", "none", "slab"]))
    chosen = {
        "smooth": _smooth(rng, shape) > 0,
        "few": rng.random(shape) < 0.02,
        "noise": rng.random(shape) < 0.5,
        "all": np.ones(shape, bool),
        "none": np.zeros(shape, bool),
        "slab": np.broadcast_to(np.arange(shape[-1]) >= shape[-1] // 2, shape),
    }[kind]
    found = np.where(chosen, rng.choice(codes, shape), 0).astype(np.uint8)
    if len(shape) == 4 and draw(st.booleans()):
        found[1:] = found[0]
    return found


def sections_for(info: ChunkInfo, has_mask: bool, bodies: list[bytes]) -> dict[int, bytes]:
    """The sections that a stream of this chunk must have, with the given bodies."""
    sections = {}
    if has_mask:
        sections[int(Section.MASK)] = bodies[0]
    if not is_constant(info):
        sections[int(Section.TREE)] = bodies[1]
    return sections


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Headers that agree with themselves, of real chunks, with meaningless section bodies."""
    info, voxel_classes = analyse(draw(arrays()))
    bodies = draw(st.lists(st.binary(min_size=1, max_size=200), min_size=2, max_size=2))
    psnr = draw(st.one_of(st.floats(0, 200, width=32), st.just(math.inf)))
    max_error = draw(st.floats(0, 2.0**100, width=32))
    return Header(info, psnr, max_error, sections_for(info, voxel_classes is not None, bodies))
