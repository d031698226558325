"""Corrections: a largest error that holds whatever a device makes of t, and a hostile section."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.memory import AllocationMeter
from tinc_codec.errors import CorruptStreamError, FormatError, TruncatedStreamError
from tinc_codec.quantise.corrections import (
    Corrections,
    apply_corrections,
    find_corrections,
    read_corrections,
    size_of,
    write_corrections,
)
from tinc_codec.volume.chunk import (
    ChunkInfo,
    allocate,
    analyse,
    denormalise,
    is_constant,
    normalise,
    valid_view,
)

TOLERANCES = (0.0, 2.0**-19, 2.0**-14, 2.0**-4)


def info_of(dtype: str, shape: tuple[int, ...], low: float, high: float) -> ChunkInfo:
    scalar = np.dtype(dtype).newbyteorder("=").type
    return ChunkInfo(np.dtype(dtype), "C", shape, shape, None, scalar(low), scalar(high))


def volume_of(array: np.ndarray, info: ChunkInfo) -> np.ndarray:
    return array[info.valid_slices].reshape(info.batched_shape)


def largest_error(original: np.ndarray, decoded: np.ndarray, classes: np.ndarray | None) -> float:
    counts = np.ones(original.shape, bool) if classes is None else classes == 0
    difference = np.subtract(original, decoded, dtype=np.longdouble)
    return float(np.abs(difference[counts.reshape(original.shape)]).max())


def decoded_with(t: np.ndarray, corrections: Corrections, info: ChunkInfo) -> np.ndarray:
    out = allocate(info)
    view = valid_view(out, info)
    denormalise(t, info, view)
    apply_corrections(view, corrections, info)
    return view


def perturbed(t: np.ndarray, tolerance: float, rng: np.random.Generator) -> list[np.ndarray]:
    """What devices within the tolerance may compute: both ends, and anything between."""
    wide = t.astype(np.float64)
    ends = [wide - tolerance, wide + tolerance]
    moved = [
        wide,
        *ends,
        np.where(rng.random(t.shape) < 0.5, *ends),
        wide + rng.uniform(-tolerance, tolerance, t.shape),
    ]
    return [np.clip(m.astype(np.float32), *_inwards(*ends)) for m in moved]


def _inwards(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outermost float32 within bounds in float64."""
    least, most = low.astype(np.float32), high.astype(np.float32)
    least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
    most = np.where(most > high, np.nextafter(most, np.float32(-np.inf)), most)
    return least, most


def assert_same(read: Corrections, written: Corrections) -> None:
    np.testing.assert_array_equal(read.positions, written.positions)
    np.testing.assert_array_equal(read.multiples, written.multiples)
    np.testing.assert_array_equal(read.absolutes, written.absolutes)
    assert read.quantum == written.quantum
    assert read.positions.dtype == written.positions.dtype == np.int64
    assert read.multiples.dtype == written.multiples.dtype == np.int32
    assert read.absolutes.dtype == written.absolutes.dtype == np.uint64


@st.composite
def bounded_chunks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float, float]:
    """A chunk, the t of some model of it, a largest error and a tolerance."""
    array = draw(strategies.arrays())
    info, classes = analyse(array)
    t = normalise(array, info, classes)
    rng = np.random.default_rng(draw(strategies.seeds))
    noise = draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.05, 1.0]))
    t = (t + rng.laplace(0, 1, t.shape) * noise).astype(np.float32)
    bound = 0.0
    if info.value_min is not None:
        half = float(info.value_max) / 2 - float(info.value_min) / 2
        share = draw(st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 0.3, 1.0]))
        bound = 2 * min(half * share, np.finfo(np.float64).max / 4)
    if array.dtype.kind != "f":
        bound = draw(st.sampled_from([bound, 0.0, 0.7, 1.0, 4.5]))
    return array, t, bound, draw(st.sampled_from(TOLERANCES))


@settings(max_examples=150)
@given(bounded_chunks(), strategies.seeds)
def test_the_bound_holds_on_every_device(
    chunk: tuple[np.ndarray, np.ndarray, float, float], seed: int
) -> None:
    array, t, bound, tolerance = chunk
    info, classes = analyse(array)
    if is_constant(info):
        return
    original = volume_of(array, info)
    corrections = find_corrections(original, t, info, classes, bound, tolerance)
    read = read_corrections(write_corrections(corrections, info), info)
    assert_same(read, corrections)
    assert not np.isnan(corrections.quantum)
    for moved in perturbed(t, tolerance, np.random.default_rng(seed)):
        decoded = decoded_with(moved, read, info)
        assert decoded.min() >= info.value_min
        assert decoded.max() <= info.value_max
        # Errors are measured in float64, as everywhere.
        assert largest_error(original, decoded, classes) <= bound * (1 + 2.0**-52)


@pytest.mark.parametrize("dtype", [*strategies.DTYPE_NAMES, ">u2", ">i4", ">f4"])
def test_multiples_mend_nearly_all(dtype: str) -> None:
    rng = np.random.default_rng(7)
    shape = (9, 20, 30)
    smooth = np.cumsum(rng.standard_normal(shape), axis=2) * 4 + 50
    array = np.clip(smooth, 0, 120).astype(dtype)
    info, classes = analyse(array)
    t = normalise(array, info, classes)
    t += rng.laplace(0, 0.02, t.shape).astype(np.float32)
    corrections = find_corrections(volume_of(array, info), t, info, classes, 3.0, 2.0**-19)
    assert len(corrections) > 500
    assert len(corrections.absolutes) <= 0.01 * len(corrections)


def test_no_offender_no_correction() -> None:
    array = np.arange(4000, dtype=np.uint16).reshape(10, 20, 20)
    info, classes = analyse(array)
    t = normalise(array, info, classes)
    corrections = find_corrections(volume_of(array, info), t, info, classes, 1.0, 2.0**-19)
    assert len(corrections) == 0
    assert_same(read_corrections(write_corrections(corrections, info), info), corrections)


def test_an_error_within_the_slack_of_the_bound_is_an_offender() -> None:
    info = info_of("f8", (1, 1, 2), 0.0, 1.0)
    original = np.array([0.0, 1.0]).reshape(1, 1, 1, 2)
    t = np.array([0.25 - 2.0**-15, 1.0], dtype=np.float32).reshape(1, 1, 1, 2)
    assert len(find_corrections(original, t, info, None, 0.25, 2.0**-16)) == 0
    found = find_corrections(original, t, info, None, 0.25, 2.0**-14)
    np.testing.assert_array_equal(found.positions, [0])


def test_t_that_is_nan_may_be_anything() -> None:
    info = info_of("i2", (1, 1, 3), -100, 100)
    original = np.array([-100, 7, 100], dtype=np.int16).reshape(1, 1, 1, 3)
    t = np.full(original.shape, np.nan, dtype=np.float32)
    corrections = find_corrections(original, t, info, None, 1.0, 2.0**-19)
    np.testing.assert_array_equal(corrections.multiples, [0, 0, 0])
    np.testing.assert_array_equal(corrections.absolutes, [0, 107, 200])


def test_a_mask_leaves_voxels_alone() -> None:
    info = info_of("f4", (1, 1, 4), 0.0, 8.0)
    original = np.array([np.nan, 8.0, np.inf, 0.0], dtype=np.float32).reshape(1, 1, 1, 4)
    classes = np.array([1, 0, 2, 0], dtype=np.uint8).reshape(1, 1, 4)
    t = np.zeros(original.shape, dtype=np.float32)
    corrections = find_corrections(original, t, info, classes, 0.5, 2.0**-19)
    np.testing.assert_array_equal(corrections.positions, [1])


def test_absolutes_of_floats_reach_across_zero() -> None:
    values = np.array([-2.5, -1e-45, -0.0, 0.0, 1e-45, 3.25], dtype=">f4").reshape(1, 1, 1, 6)
    info = info_of(">f4", (1, 1, 6), -2.5, 3.25)
    t = np.full(values.shape, 0.5, dtype=np.float32)
    corrections = find_corrections(values, t, info, None, 0.0, 2.0**-19)
    assert len(corrections.absolutes) == 6
    view = np.zeros(values.shape, dtype=">f4")
    apply_corrections(view, corrections, info)
    np.testing.assert_array_equal(view, values)


@st.composite
def any_corrections(draw: st.DrawFn) -> tuple[Corrections, ChunkInfo]:
    """Corrections as the format allows them, likely or not."""
    dtype = draw(st.sampled_from(["u1", "i2", "u4", "f2", "f4", "f8"]))
    low, high = {"u1": (3, 7), "i2": (-900, 900), "u4": (0, 2**32 - 1)}.get(dtype, (-6e4, 6e4))
    shape = draw(strategies.shapes(max_voxels=3000))
    info = info_of(dtype, shape, low, high)
    rng = np.random.default_rng(draw(strategies.seeds))
    n_voxels = int(np.prod(shape))
    chosen = np.flatnonzero(rng.random(n_voxels) < draw(st.sampled_from([0, 0.01, 0.3, 1])))
    largest = draw(st.sampled_from([1, 3, 2**31 - 1]))
    multiples = rng.integers(-largest, largest, len(chosen), dtype=np.int32, endpoint=True)
    n_values = {"u1": 5, "i2": 1801, "u4": 2**32}.get(dtype, 2 ** int(dtype[1]))
    absolutes = rng.integers(0, n_values, np.count_nonzero(multiples == 0), dtype=np.uint64)
    quantum = 5.0 if dtype[0] != "f" else draw(st.sampled_from([0.0, 5e-324, 0.1, 1e308]))
    return Corrections(chosen, multiples, absolutes, quantum), info


@settings(max_examples=200)
@given(any_corrections())
def test_any_corrections_come_back(case: tuple[Corrections, ChunkInfo]) -> None:
    corrections, info = case
    section = write_corrections(corrections, info)
    assert_same(read_corrections(section, info), corrections)
    assert size_of(corrections, info) == len(section)
    view = np.full(info.batched_shape, info.value_min)
    apply_corrections(view, corrections, info)
    assert view.min() >= info.value_min
    assert view.max() <= info.value_max


def clustered(shape: tuple[int, int, int], seed: int) -> tuple[Corrections, ChunkInfo]:
    rng = np.random.default_rng(seed)
    info = info_of("u1", shape, 0, 255)
    waves = [np.sin(np.linspace(0, 9, n)) ** 4 for n in shape]
    density = 0.4 * np.einsum("z,y,x->zyx", *waves)
    positions = np.flatnonzero(rng.random(shape) < density)
    multiples = rng.choice([-1, 1, -2, 2], len(positions), p=[0.49, 0.49, 0.01, 0.01])
    absolutes = np.empty(0, np.uint64)
    return Corrections(positions, multiples.astype(np.int32), absolutes, 3.0), info


def test_estimated_size_of_a_large_section() -> None:
    corrections, info = clustered((128, 64, 64), 3)
    exact = len(write_corrections(corrections, info))
    estimate = size_of(corrections, info)
    assert estimate != exact, "sampled"
    assert abs(estimate / exact - 1) < 0.15


def test_clusters_cost_less_than_chance() -> None:
    corrections, info = clustered((64, 64, 64), 1)
    n, voxels = len(corrections), 64**3
    share = n / voxels
    scattered_bits = -n * np.log2(share) - (voxels - n) * np.log2(1 - share) + n
    assert len(write_corrections(corrections, info)) * 8 < 0.9 * scattered_bits


# Made once by the code of the format's first version with this section.
PINNED = "09399423b09eb882560689ff390e3d72d977bc7ced04f2000000"


def pinned() -> tuple[Corrections, ChunkInfo]:
    positions = np.array([0, 1, 7, 8, 20, 21, 22, 51, 99, 100, 101, 179], dtype=np.int64)
    multiples = np.array([1, -1, 0, 2, 3, 1, 1, -70000, 0, -1, -1, 2**31 - 1], dtype=np.int32)
    absolutes = np.array([0, 700], dtype=np.uint64)
    info = info_of("i2", (2, 3, 3, 10), -300, 400)
    return Corrections(positions, multiples, absolutes, 9.0), info


def test_pinned_bytes() -> None:
    corrections, info = pinned()
    assert write_corrections(corrections, info).hex() == PINNED
    assert_same(read_corrections(bytes.fromhex(PINNED), info), corrections)


def assert_read_or_reject(data: bytes, info: ChunkInfo) -> None:
    """Reading gives an error of the format, or corrections that can be applied."""
    try:
        corrections = read_corrections(data, info)
    except FormatError:
        return
    assert (np.diff(corrections.positions) > 0).all()
    assert np.count_nonzero(corrections.multiples == 0) == len(corrections.absolutes)
    view = np.full(info.batched_shape, info.value_max)
    apply_corrections(view, corrections, info)
    assert view.min() >= info.value_min
    assert view.max() <= info.value_max


def test_every_truncation() -> None:
    corrections, info = clustered((8, 16, 16), 2)
    section = write_corrections(corrections, info)
    for n in range(len(section)):
        assert_read_or_reject(section[:n], info)
    with pytest.raises(CorruptStreamError, match="do not code"):
        read_corrections(section[:-5], info)
    with pytest.raises(CorruptStreamError, match="do not code"):
        read_corrections(section + b"\x01" * 5, info)
    with pytest.raises(TruncatedStreamError):
        read_corrections(b"", info)


@settings(max_examples=200)
@given(any_corrections(), st.data())
def test_bit_flips(case: tuple[Corrections, ChunkInfo], data: st.DataObject) -> None:
    corrections, info = case
    section = bytearray(write_corrections(corrections, info))
    for _ in range(data.draw(st.integers(1, 4))):
        bit = data.draw(st.integers(0, 8 * len(section) - 1))
        section[bit // 8] ^= 1 << bit % 8
    assert_read_or_reject(bytes(section), info)


@given(st.binary(max_size=120), st.sampled_from(["u1", "u4", "f2", "f8"]))
@example(b"\x01" + b"\xff" * 40, "u1")
def test_noise(data: bytes, dtype: str) -> None:
    assert_read_or_reject(data, info_of(dtype, (3, 5, 17), 1, 200))


@pytest.mark.parametrize("quantum", [np.nan, np.inf, -1.0])
def test_a_float_quantum_out_of_range(quantum: float) -> None:
    with pytest.raises(CorruptStreamError, match="quantum"):
        read_corrections(np.array(quantum, "<f8").tobytes(), info_of("f4", (4,), 0, 1))


@pytest.mark.parametrize("quantum", [b"\x00", b"\x80\x80\x80\x80\x20"])
def test_an_integer_quantum_out_of_range(quantum: bytes) -> None:
    with pytest.raises(CorruptStreamError, match="quantum"):
        read_corrections(quantum, info_of("u1", (4,), 0, 1))


def test_an_absolute_beyond_the_range() -> None:
    wide, narrow = info_of("u1", (4,), 0, 7), info_of("u1", (4,), 0, 6)
    corrections = Corrections(np.array([2]), np.zeros(1, np.int32), np.array([7], np.uint64), 1.0)
    section = write_corrections(corrections, wide)
    assert_same(read_corrections(section, wide), corrections)
    with pytest.raises(CorruptStreamError, match="steps above value_min"):
        read_corrections(section, narrow)


def test_a_short_section_for_every_voxel_needs_little_memory() -> None:
    shape = (64, 64, 64)
    info = info_of("u1", shape, 0, 255)
    n = 64**3
    everywhere = Corrections(np.arange(n), np.ones(n, np.int32), np.empty(0, np.uint64), 1.0)
    section = write_corrections(everywhere, info)
    assert len(section) < 100, "a short section may well name every voxel"
    read = read_corrections(section, info)
    assert_same(read, everywhere)
    view = np.zeros(info.batched_shape, np.uint8)
    with AllocationMeter() as meter:
        apply_corrections(view, read, info)
    assert (view == 1).all()
    assert meter.peak_bytes < 16 * n
