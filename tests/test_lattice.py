"""Lattices: two readers agree, promises hold, damaged sections are errors."""

import math
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import lattice_reference, strategies
from tests.faces import smooth_volume
from tests.memory import AllocationMeter
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.scalars import float32_bound
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.varint import MAX_VARINT, write_varint
from tinc_codec.codec import (
    decode_chunk,
    decode_chunks,
    decode_chunks_on_device,
    decode_level,
    decode_region,
    encode_chunk,
    encode_chunks,
)
from tinc_codec.errors import (
    ConfigError,
    CorruptStreamError,
    FormatError,
    TargetError,
    TruncatedStreamError,
)
from tinc_codec.model.opened import CACHE
from tinc_codec.params import EncodingParams
from tinc_codec.quantise import lattice_coder, lattice_section
from tinc_codec.quantise.lattice import (
    MAX_TOP,
    from_lattice,
    place_points,
    to_lattice,
    values_of,
)
from tinc_codec.quantise.lattice_coder import encode_slab
from tinc_codec.quantise.lattice_section import read_lattice, write_lattice
from tinc_codec.rewrite import open_old, rewrite_chunk
from tinc_codec.volume.chunk import ChunkInfo, analyse, is_constant
from tinc_codec.volume.mask import encode_classes

DTYPES = ("u1", "i1", "u2", ">i2", "u4", "i4", "f2", "f4", ">f4", "f8")
INTEGERS = tuple(name for name in DTYPES if name[-2] != "f")
FLOATS = tuple(name for name in DTYPES if name[-2] == "f")
SHAPES = (
    (2,), (11,), (1, 1, 9), (9, 1, 1), (1, 9, 1), (7, 5), (12, 1, 4), (1, 6, 7), (2, 3, 12),
    (6, 7, 8), (3, 2, 4, 5), (2, 1, 3, 3, 4), (5, 1, 1, 1), (4, 1, 1, 6),
)  # fmt: skip
SOME = EncodingParams(max_error=0.05, model="lattice", effort=0)


def header_of(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 32)


def asked(model: str = "lattice", **target: float) -> EncodingParams:
    return EncodingParams(model=model, effort=0, **target)


def info_of(dtype: str, shape: tuple[int, ...], low: float, high: float) -> ChunkInfo:
    scalar = np.dtype(dtype).newbyteorder("=").type
    return ChunkInfo(np.dtype(dtype), "C", shape, shape, None, scalar(low), scalar(high))


def finite_of(array: np.ndarray) -> np.ndarray:
    return np.isfinite(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)


def error_of(original: np.ndarray, found: np.ndarray) -> float:
    """The largest over the finite voxels; those that are not must be the same."""
    finite = finite_of(original)
    np.testing.assert_array_equal(found[~finite], original[~finite])
    wide = np.longdouble
    difference = np.abs(original[finite].astype(wide) - found[finite].astype(wide))
    return float(difference.max(initial=0))


@dataclass(frozen=True, eq=False)
class Case:
    """A chunk's facts and its section."""

    array: np.ndarray
    info: ChunkInfo
    classes: np.ndarray | None
    body: bytes

    @property
    def finite(self) -> np.ndarray:
        return finite_of(self.array[self.info.valid_slices]).reshape(self.info.batched_shape)

    def stream(self, body: bytes | None = None) -> bytes:
        """The whole stream, or one with another section."""
        sections = {} if self.classes is None else {int(Section.MASK): encode_classes(self.classes)}
        sections[int(Section.LATTICE)] = self.body if body is None else body
        return write_stream(Header(self.info, 0.0, math.inf, sections))


def case_of(array: np.ndarray, step: float, origin: float | None = None) -> Case:
    """Place a lattice on a chunk, through its lowest value if no other is said."""
    info, classes = analyse(array)
    assert not is_constant(info)
    start = info.value_min if origin is None else type(info.value_min)(origin)
    points = place_points(info, start, step)
    assert points is not None
    volume = array[info.valid_slices].reshape(info.batched_shape)
    body = write_lattice(to_lattice(volume, info, points), info, classes, 2)
    return Case(array, info, classes, body)


def reference_of(
    info: ChunkInfo, classes: np.ndarray | None, body: bytes
) -> lattice_reference.ReferenceLattice:
    return lattice_reference.read(
        body, info.dtype, info.batched_shape, info.value_min, info.value_max, classes
    )


def assert_agree(case: Case) -> lattice_reference.ReferenceLattice:
    """Check points, indices and values of the package against the second reader."""
    reference = reference_of(case.info, case.classes, case.body)
    found = read_lattice(case.body, case.info, case.classes, 2)
    points = found.points
    assert (points.origin, points.step) == (reference.origin, reference.step)
    assert (points.below, points.top) == (reference.below, reference.top)
    np.testing.assert_array_equal(found.indices, reference.indices)
    expected = lattice_reference.values_of(
        reference, case.info.dtype, case.info.value_min, case.info.value_max
    )
    out = np.empty(case.info.batched_shape, case.info.dtype)
    from_lattice(found, case.info, out)
    np.testing.assert_array_equal(out, expected)
    decoded = decode_chunk(case.stream())[case.info.valid_slices].reshape(out.shape)
    np.testing.assert_array_equal(decoded[case.finite], expected[case.finite])
    return reference


def contents(kind: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """What predictions follow, what they do not, and jumps."""
    rng = np.random.default_rng(math.prod(shape))
    small = np.dtype(dtype).itemsize == 1
    if kind == "ramp":
        return smooth_volume(shape, dtype)
    if kind == "noise":
        return rng.integers(0, 100, shape).astype(dtype)
    if kind == "outlier":
        flat = np.full(math.prod(shape), 3, dtype)
        flat[flat.size // 2] = 90 if small else 30000
        return flat.reshape(shape)
    mixed = smooth_volume(shape, "f8") + rng.normal(0, 2, shape)
    mixed[rng.random(shape) < 0.3] = 7
    return mixed.clip(0, 120).astype(dtype)


class TestTwoReaders:
    """The package, and a reader written from the document alone."""

    @pytest.mark.parametrize("kind", ["ramp", "noise", "outlier", "mixed"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_shape_and_dtype(self, dtype, kind):
        for shape in SHAPES:
            array = contents(kind, shape, dtype)
            assert_agree(case_of(array, 1 if np.dtype(dtype).kind in "iu" else 0.37))

    @settings(max_examples=60)
    @given(strategies.arrays(max_voxels=250), st.sampled_from([0.4, 0.11, 1e-3, 1e-6]), st.data())
    def test_any_chunk(self, array, share, data):
        info, _ = analyse(array)
        assume(not is_constant(info))
        span = float(info.value_max) / 2 - float(info.value_min) / 2
        assume(0 < span < 8e307)
        finite = array[info.valid_slices][finite_of(array[info.valid_slices])]
        origin = finite.flat[data.draw(st.integers(0, finite.size - 1))]
        step = max(span * share, 5e-324)
        assert_agree(case_of(array, step if info.dtype.kind == "f" else math.ceil(step), origin))

    @pytest.mark.parametrize(
        ("slab_voxels", "n_slabs"),
        [(1, 15), (40, 9), (60, 6), (100, 3), (120, 3), (250, 2), (400, 1)],
    )
    def test_slabs_of_parts_and_of_several_volumes(self, monkeypatch, slab_voxels, n_slabs):
        monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", slab_voxels)
        array = contents("mixed", (3, 5, 4, 6), "i2")
        case = case_of(array, 1)
        assert assert_agree(case).slabs == n_slabs
        np.testing.assert_array_equal(decode_chunk(case.stream()), array)

    @pytest.mark.parametrize("slab_voxels", [30, 90, 10_000])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_masks(self, monkeypatch, dtype, slab_voxels):
        monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", slab_voxels)
        array = contents("mixed", (2, 2, 5, 6, 7), dtype)
        array[0, 0, 1:3, 2:] = np.nan
        array[0, 1] = np.nan
        array[1, 0, 4, 5, 6], array[1, 1, 0, 0, 0] = np.inf, -np.inf
        case = case_of(array, 0.25)
        assert_agree(case)
        assert error_of(array, decode_chunk(case.stream())) <= 0.13

    def test_one_finite_voxel_per_slab(self, monkeypatch):
        monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", 12)
        array = np.full((4, 3, 4), np.nan, "f4")
        array[0, 0, 0], array[1, 2, 3], array[3, 1, 1] = 1, 2, 3
        reference = assert_agree(case_of(array, 0.5))
        assert reference.slabs == 4

    @pytest.mark.parametrize("low", [-(2**31), -5, 2**31 - 1 - 2**23])
    def test_jumps_need_escapes(self, low):
        rng = np.random.default_rng(1)
        array = (low + rng.integers(0, 2, (6, 7, 8)) * 2**20).astype("i4")
        reference = assert_agree(case_of(array, 1))
        assert reference.top == 2**20
        assert reference.escapes > 0

    def test_the_widest_noise(self):
        rng = np.random.default_rng(2)
        array = rng.integers(0, MAX_TOP, (7, 6, 9), endpoint=True).astype("u4")
        array[0, 0, :2] = 0, MAX_TOP
        reference = assert_agree(case_of(array, 1))
        assert reference.top == MAX_TOP
        assert reference.largest_shift >= 18

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
    def test_few_points(self, step):
        rng = np.random.default_rng(step)
        array = rng.integers(10, 13, (5, 6, 7)).astype("u2")
        tops = set()
        for origin in (10, 11, 12):
            case = case_of(array, step, origin)
            tops.add(assert_agree(case).top)
            assert error_of(array, decode_chunk(case.stream())) <= step // 2
        assert tops == {1: {2}, 2: {1, 2}, 3: {0, 1}, 4: {0, 1}, 5: {0}}[step]

    @settings(max_examples=150)
    @given(st.data())
    def test_damage_is_seen_by_both_or_read_alike(self, data):
        """What is rejected, and as what, is the document's; any other code has one meaning."""
        dtype = data.draw(st.sampled_from(["u1", "i4", "f4"]))
        array = contents("mixed", (2, 3, 4, 5), dtype)
        if dtype == "f4":
            array[1, 1] = np.nan
        case = case_of(array, 1, 7)
        damaged = bytearray(case.body)
        for _ in range(data.draw(st.integers(1, 3))):
            bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
            damaged[bit // 8] ^= 1 << bit % 8
        body = bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) - 3]))])
        expected: type[Exception] | np.ndarray
        try:
            expected = reference_of(case.info, case.classes, body).indices
        except EOFError:
            expected = TruncatedStreamError
        except ValueError:
            expected = CorruptStreamError
        if isinstance(expected, type):
            with pytest.raises(expected):
                read_lattice(body, case.info, case.classes, 1)
        else:
            found = read_lattice(body, case.info, case.classes, 1)
            np.testing.assert_array_equal(found.indices, expected)

    def test_threads_change_no_bit(self, monkeypatch):
        monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", 100)
        array = contents("mixed", (9, 8, 10), "u2")
        info, _ = analyse(array)
        points = place_points(info, info.value_min, 1)
        assert points is not None
        lattice = to_lattice(array[None], info, points)
        bodies = [write_lattice(lattice, info, None, threads) for threads in (1, 2, 5)]
        assert bodies[0] == bodies[1] == bodies[2]
        for threads in (1, 3):
            read = read_lattice(bodies[0], info, None, threads)
            np.testing.assert_array_equal(read.indices, array[None] - info.value_min)


# Made once by the code of the format's first version with this section.
PINNED = (
    "000103448affbfe7fe0006a9953002c9d6ff7ba5512e588668fe000445cc2575e50abe3d"
    "a049f996928adcd212f7e988d1c919e9749b8a51da34a0e425e2503732e3bc4c194b542e"
)


def test_pinned_bytes():
    array = (np.arange(60) ** 2 % 37).reshape(3, 4, 5).astype("u1")
    array[1, 2, 3] = 255
    assert case_of(array, 1).body.hex() == PINNED


class TestExactness:
    @pytest.mark.parametrize("model", ["lattice", "auto"])
    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_integers(self, dtype, model):
        for kind in ("ramp", "noise", "outlier", "mixed"):
            for shape in ((9, 8, 11), (2, 3, 4, 5, 6), (40,), (1, 1, 2)):
                array = contents(kind, shape, dtype)
                stream = encode_chunk(array, asked(model, max_error=0))
                found = decode_chunk(stream)
                np.testing.assert_array_equal(found, array)
                assert found.dtype == array.dtype
                header = header_of(stream)
                assert (header.psnr, header.max_error) == (math.inf, 0)
                assert model == "auto" or Section.LATTICE in header.sections

    @pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i2"])
    def test_ends_of_the_range(self, dtype):
        ends = np.iinfo(dtype)
        rng = np.random.default_rng(0)
        array = rng.choice([ends.min, ends.min + 1, 0, ends.max - 1, ends.max], (6, 7, 8))
        array = array.astype(dtype)
        stream = encode_chunk(array, asked(max_error=0))
        np.testing.assert_array_equal(decode_chunk(stream), array)

    @pytest.mark.parametrize("dtype", ["u4", ">i4"])
    def test_ends_of_a_range_that_is_too_wide(self, dtype):
        ends = np.iinfo(dtype)
        array = np.random.default_rng(0).choice([ends.min, 5, ends.max], (6, 7, 8)).astype(dtype)
        with pytest.raises(TargetError, match=rf"{MAX_TOP + 1} points.*{ends.min} to {ends.max}"):
            encode_chunk(array, asked(max_error=0))
        stream = encode_chunk(array, asked("auto", max_error=0))
        np.testing.assert_array_equal(decode_chunk(stream), array)
        for low, high in ((ends.min, ends.min + MAX_TOP), (ends.max - MAX_TOP, ends.max)):
            near = np.where(array == 5, low, high).astype(dtype)
            stream = encode_chunk(near, asked(max_error=0))
            np.testing.assert_array_equal(decode_chunk(stream), near)

    @pytest.mark.parametrize("max_error", [1, 2.9, 7, 1000, 1e9, 1e300])
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "u4", "i4"])
    def test_integers_within_a_bound(self, dtype, max_error):
        ends = np.iinfo(dtype)
        rng = np.random.default_rng(0)
        for array in (
            contents("mixed", (5, 6, 7), dtype),
            rng.integers(ends.min, ends.max, (5, 6, 7), endpoint=True).astype(dtype),
        ):
            if np.ptp(array.astype("f8")) / (2 * max_error) > MAX_TOP / 2:
                continue
            stream = encode_chunk(array, asked(max_error=max_error))
            assert Section.LATTICE in header_of(stream).sections
            error = error_of(array, decode_chunk(stream))
            assert error <= max_error
            assert header_of(stream).max_error == float32_bound(error, math.inf)

    def test_a_background_costs_next_to_nothing(self):
        array = np.full((32, 32, 32), 9, "u2")
        array[3, 4, 5] = 40000
        stream = encode_chunk(array, asked(max_error=0))
        assert len(stream) < 100
        np.testing.assert_array_equal(decode_chunk(stream), array)


def wide_floats() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (6, 7, 8)
    waves = (np.sin(np.linspace(0, 9, 336)).reshape(shape) + 1) / 2
    return {
        "float16": (waves * 1.9 - 0.95).astype("f2") * np.finfo("f2").max,
        "float32": ((waves * 2 - 1).astype("f4") * np.finfo("f4").max),
        "float64": (waves * 2 - 1) * 8e307,
        "ends of float64": rng.choice([-1.7e308, 0.0, 0.0, 0.0, 1.7e308], shape),
        "subnormal float16": (rng.integers(0, 900, shape) * 2.0**-24).astype(">f2"),
        "subnormal float32": (rng.integers(0, 90000, shape) * 2.0**-149).astype("f4"),
        "subnormal float64": rng.integers(0, 90000, shape) * 5e-324,
        "far from zero": (1e6 + waves).astype(">f4"),
    }


class TestBounds:
    @settings(max_examples=80)
    @given(
        strategies.arrays("f", max_voxels=400), st.sampled_from([1e-5, 1e-4, 1e-3, 0.03, 0.4, 1, 9])
    )
    def test_every_voxel_keeps_it(self, array, share):
        info, _ = analyse(array)
        assume(info.value_min is not None)
        span = min(float(info.value_max) / 2 - float(info.value_min) / 2, 8e307)
        bound = min(2 * span * share, np.finfo("f8").max)
        largest = max(abs(info.value_min), abs(info.value_max))
        rounding = float(largest) - float(np.nextafter(largest, largest.dtype.type(0)))
        # Roundings to the dtype may take all of a bound, and float64 may not hold the range.
        is_sure = bound > 8 * rounding and span < 4e307
        try:
            stream = encode_chunk(array, asked(max_error=bound))
        except TargetError:
            assert not is_sure
            return
        assert error_of(array, decode_chunk(stream)) <= bound
        assert header_of(stream).max_error <= float32_bound(bound, math.inf)

    @pytest.mark.parametrize("share", [1e-3, 0.01, 0.1, 0.3, 0.45, 2])
    @pytest.mark.parametrize("name", wide_floats())
    def test_extremes(self, name, share):
        array = wide_floats()[name]
        half_span = float(array.max()) / 2 - float(array.min()) / 2
        bound = 2 * min(half_span * share, 8.9e307)
        stream = encode_chunk(array, asked("auto", max_error=bound))
        found = decode_chunk(stream)
        assert error_of(array, found) <= bound
        assert found.min() >= array.min()
        assert found.max() <= array.max()

    @pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.45, 1])
    @pytest.mark.parametrize("name", ["float16", "float32", "subnormal float32", "float64"])
    def test_extremes_of_lattices(self, name, share):
        array = wide_floats()[name]
        bound = share * (float(array.max()) - float(array.min()))
        stream = encode_chunk(array, asked(max_error=bound))
        assert error_of(array, decode_chunk(stream)) <= bound

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_the_commonest_value_comes_back_exactly(self, dtype):
        rng = np.random.default_rng(0)
        array = rng.normal(0, 10, (8, 9, 10)).astype(dtype)
        background = rng.random(array.shape) < 0.4
        array[background] = 0.1
        array[0, 0] = np.nan
        background[0, 0] = False
        for target in ({"max_error": 0.4}, {"psnr": 45.0}):
            stream = encode_chunk(array, asked(**target))
            assert (decode_chunk(stream)[background] == array[background]).all()
            assert error_of(array, decode_chunk(stream)) > 0

    @pytest.mark.parametrize("psnr", [20.0, 35.0, 52.5, 70.0])
    @pytest.mark.parametrize("dtype", ["<f4", ">f8"])
    def test_psnr_is_reached_and_hardly_exceeded(self, dtype, psnr):
        for kind in ("ramp", "mixed"):
            array = contents(kind, (14, 15, 16), dtype)
            header = header_of(encode_chunk(array, asked(psnr=psnr)))
            assert Section.LATTICE in header.sections
            assert psnr <= header.psnr <= psnr + 0.5

    @pytest.mark.parametrize("dtype", ["u1", ">i2"])
    def test_psnr_on_integers(self, dtype):
        array = contents("mixed", (14, 15, 16), dtype)
        sizes = []
        for psnr in (20.0, 30.0, 40.0, 200.0):
            stream = encode_chunk(array, asked(psnr=psnr))
            assert header_of(stream).psnr >= psnr
            sizes.append(len(stream))
        assert sizes == sorted(sizes)
        np.testing.assert_array_equal(decode_chunk(stream), array)

    def test_auto_takes_the_shorter(self):
        rng = np.random.default_rng(0)
        arrays = {
            "noise": rng.integers(0, 256, (16, 16, 16)).astype("u1"),
            "smooth": smooth_volume((24, 24, 24), "f4"),
        }
        for target in ({"max_error": 1.0}, {"max_error": 6.0}, {"psnr": 25.0}, {"psnr": 48.0}):
            for array in arrays.values():
                sizes = {
                    model: len(encode_chunk(array, asked(model, **target)))
                    for model in ("auto", "lattice", "features")
                }
                assert sizes["auto"] <= 1.01 * min(sizes.values())
        noise = encode_chunk(arrays["noise"], asked("auto", max_error=1.0))
        smooth = encode_chunk(arrays["smooth"], asked("auto", psnr=25.0))
        assert Section.LATTICE in header_of(noise).sections
        assert Section.FEATURES in header_of(smooth).sections

    def test_several_chunks_have_the_bytes_that_each_has_alone(self):
        arrays = [contents(kind, (9, 8, 7), "f4") for kind in ("ramp", "mixed", "noise")]
        arrays.append(np.full((9, 8, 7), 3, "f4"))
        assert encode_chunks(arrays, SOME) == [encode_chunk(array, SOME) for array in arrays]


class TestSizes:
    @pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0, 8.0, 16.0, 50.0])
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", "f8"])
    def test_a_ratio_is_kept(self, dtype, ratio):
        """By noise too, whose bytes hardly fall with the step."""
        for kind in ("mixed", "noise"):
            array = contents(kind, (14, 15, 16), dtype)
            stream = encode_chunk(array, asked(ratio=ratio))
            assert len(stream) * ratio <= array.nbytes
            assert Section.LATTICE in header_of(stream).sections

    @pytest.mark.parametrize("ratio", [900.0, 5000.0])
    def test_a_ratio_that_no_chunk_has(self, ratio):
        array = contents("mixed", (14, 15, 16), "u2")
        with pytest.raises(TargetError, match="largest possible ratio for it is") as caught:
            encode_chunk(array, asked(ratio=ratio))
        (possible,) = map(float, re.findall(r"ratio for it is ([\d.]+);", str(caught.value)))
        stream = encode_chunk(array, asked(ratio=possible))
        assert len(stream) * possible <= array.nbytes


class TestParameters:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("levels", 3), ("layers", 2), ("node_split", "equal"), ("w0", 20.0)],
    )
    def test_settings_of_trees_are_refused(self, name, value):
        with pytest.raises(ConfigError, match=rf"{name}=.*setting of trees.*model=\"lattice\""):
            EncodingParams(max_error=1, model="lattice", **{name: value})

    def test_an_unknown_model_names_all(self):
        with pytest.raises(ConfigError, match=r"model='grid'.*lattice"):
            EncodingParams(max_error=1, model="grid")

    def test_it_is_kept_in_the_metadata(self):
        chosen = EncodingParams(max_error=1, model="lattice")
        assert chosen.to_config()["model"] == "lattice"


def some_case(dtype: str = "u1") -> Case:
    return case_of(contents("mixed", (3, 6, 5), dtype), 1)


@pytest.fixture
def damaged_slab(monkeypatch) -> Case:
    """Three slabs, the second of them no slab's code."""
    monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", 30)
    case = some_case()
    body = bytearray(case.body)
    start = 6 + body[3]
    body[start : start + 4] = b"\xff" * 4
    return replace(case, body=bytes(body))


def read_or_refusal(read: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What was read, or why it was not."""
    try:
        return read(*args), ""
    except FormatError as error:
        return None, str(error)


def code_of_zeros(planes: int, info: ChunkInfo, top: int) -> bytes:
    """A slab all of whose indices are 0."""
    n_z, *plane = info.batched_shape[1:]
    zeros = np.zeros((planes, *plane), np.int32)
    return bytes(encode_slab(zeros, np.empty((0, 0, 0), np.uint8), n_z, top))


def section(head: bytes, planes: int, codes: list[bytes]) -> bytes:
    lengths = b"".join(write_varint(len(code)) for code in codes)
    return head + write_varint(planes) + lengths + b"".join(codes)


class TestDamage:
    @pytest.mark.parametrize("dtype", ["u1", "i4", "f2", "f8"])
    def test_every_truncation(self, dtype):
        case = some_case(dtype)
        for n in range(len(case.body)):
            with pytest.raises(TruncatedStreamError, match="lattice: "):
                read_lattice(case.body[:n], case.info, None, 1)
            if n:
                with pytest.raises(TruncatedStreamError, match="lattice: "):
                    decode_chunk(case.stream(case.body[:n]))

    def test_every_truncation_of_a_code(self):
        case = some_case()
        head, code = case.body[:2], case.body[-len(case.body) + 4 :]
        assert section(head, 3, [code]) == case.body
        for n in range(len(code)):
            body = section(head, 3, [code[:n]])
            # A shorter code may have a meaning: the same for both readers.
            try:
                expected = reference_of(case.info, None, body).indices
            except ValueError:
                with pytest.raises(CorruptStreamError, match=f"the {n} bytes of slab 0 do not"):
                    read_lattice(body, case.info, None, 1)
            else:
                found = read_lattice(body, case.info, None, 1).indices
                np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("dtype", ["|u1", ">i4", "<f2", ">f8"])
    def test_every_flipped_bit(self, dtype):
        array = np.asarray(contents("mixed", (2, 3, 4, 5), dtype), order="F")
        if array.dtype.kind == "f":
            array[1, 1] = np.nan
        case = case_of(array, 1)
        for bit in range(8 * len(case.body)):
            damaged = bytearray(case.body)
            damaged[bit // 8] ^= 1 << bit % 8
            found, refusal = read_or_refusal(decode_chunk, case.stream(bytes(damaged)))
            if refusal:
                assert refusal.startswith("lattice: ")
                continue
            assert (found.shape, found.dtype.str) == (array.shape, dtype)
            assert found.flags.f_contiguous
            finite = finite_of(array)
            np.testing.assert_array_equal(found[~finite], array[~finite])
            assert found[finite].min() >= case.info.value_min
            assert found[finite].max() <= case.info.value_max

    @given(st.binary(max_size=80), st.sampled_from(["u1", "u4", "f2", "f8"]))
    def test_noise(self, data, dtype):
        info = info_of(dtype, (3, 5, 7), 1, 200)
        try:
            found = read_lattice(data, info, None, 1)
        except FormatError:
            return
        assert 0 <= found.indices.min() <= found.indices.max() <= found.points.top

    @given(st.binary(max_size=80), st.integers(0, MAX_TOP))
    def test_noise_behind_good_fields(self, code, top):
        info = info_of("u4", (3, 5, 7), 0, max(top, 1))
        body = section(bytes(4) + write_varint(1), 3, [code])
        found, refusal = read_or_refusal(read_lattice, body, info, None, 1)
        if refusal:
            assert f"the {len(code)} bytes of slab 0 do not code" in refusal
            return
        assert 0 <= found.indices.min() <= found.indices.max() <= found.points.top

    @pytest.mark.parametrize(
        ("step", "message"),
        [(0, "step 0 not in 1 to"), (2**33, "step"), (2**34, "step"), (MAX_VARINT, "step")],
    )
    def test_integer_steps_out_of_range(self, step, message):
        info = info_of("i2", (3, 4), -5, 9)
        body = section(struct.pack("<h", 0) + write_varint(step), 1, [b""])
        with pytest.raises(CorruptStreamError, match=message):
            read_lattice(body, info, None, 1)

    @pytest.mark.parametrize("step", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
    def test_float_steps_out_of_range(self, step):
        info = info_of("f4", (3, 4), -5, 9)
        body = section(struct.pack("<fd", 0, step), 1, [b""])
        with pytest.raises(CorruptStreamError, match=r"lattice: step .* not finite and positive"):
            read_lattice(body, info, None, 1)

    @pytest.mark.parametrize("origin", [-5.1, 9.1, math.nan, math.inf, -math.inf])
    def test_float_origins_out_of_range(self, origin):
        info = info_of("f4", (3, 4), -5, 9)
        body = section(struct.pack("<fd", origin, 1.0), 1, [b""])
        with pytest.raises(CorruptStreamError, match=r"lattice: origin .* not in -5.0 to 9.0"):
            read_lattice(body, info, None, 1)

    @pytest.mark.parametrize("origin", [-6, 10, 32767, -32768])
    def test_integer_origins_out_of_range(self, origin):
        info = info_of("i2", (3, 4), -5, 9)
        body = section(struct.pack("<h", origin) + b"\x01", 1, [b""])
        with pytest.raises(CorruptStreamError, match=f"lattice: origin {origin} not in -5 to 9"):
            read_lattice(body, info, None, 1)

    @pytest.mark.parametrize("planes", [0, 5, 6, 9, 14, 16, 2**40, MAX_VARINT])
    def test_planes_that_do_not_fit(self, planes):
        info = info_of("u1", (3, 4, 2, 2), 0, 9)
        body = section(b"\x00\x01", planes, [b""] * 12)
        with pytest.raises(CorruptStreamError, match=f"lattice: {planes} planes per slab"):
            read_lattice(body, info, None, 1)

    @pytest.mark.parametrize(
        ("planes", "slabs"),
        [
            (1, [1] * 12),
            (2, [2] * 6),
            (3, [3, 1] * 3),
            (4, [4] * 3),
            (8, [8, 4]),
            (12, [12]),
        ],
    )
    def test_planes_that_fit(self, planes, slabs):
        info = info_of("u1", (3, 4, 2, 2), 0, 9)
        codes = [code_of_zeros(n, info, 9) for n in slabs]
        body = section(b"\x00\x01", planes, codes)
        assert not reference_of(info, None, body).indices.any()
        assert not read_lattice(body, info, None, 1).indices.any()
        with pytest.raises(CorruptStreamError, match="1 bytes follow"):
            read_lattice(body + b"\x00", info, None, 1)
        if len(slabs) > 1:
            with pytest.raises(FormatError):
                read_lattice(section(b"\x00\x01", planes, codes[1:]), info, None, 1)

    def test_too_many_points(self):
        for top, fits in ((MAX_TOP, True), (MAX_TOP + 1, False)):
            info = info_of("u4", (3, 4), 0, top)
            code = code_of_zeros(1, info, top)
            body = section(bytes(4) + b"\x01", 1, [code])
            if fits:
                assert read_lattice(body, info, None, 1).points.top == MAX_TOP
            else:
                with pytest.raises(CorruptStreamError, match=f"more than {MAX_TOP + 1} points"):
                    read_lattice(body, info, None, 1)

    @pytest.mark.parametrize(
        ("low", "high", "step"),
        [(0, 1, 1e-8), (0, 1, 5e-324), (-1.7e308, 1.7e308, 1.0), (-1.7e308, 1.7e308, 1e308)],
    )
    def test_too_many_points_of_floats(self, low, high, step):
        info = info_of("f8", (3, 4), low, high)
        body = section(struct.pack("<dd", low, step), 1, [b""])
        with pytest.raises(CorruptStreamError, match=f"more than {MAX_TOP + 1} points"):
            read_lattice(body, info, None, 1)
        with pytest.raises(ValueError, match="points"):
            reference_of(info, None, body)

    def test_points_beyond_what_float64_holds(self):
        """The limit comes after the overflow, and is silent."""
        info = info_of("f8", (3, 4), -1.7e308, 1.7e308)
        points = place_points(info, np.float64(0), 1e308)
        assert points is not None
        found = values_of(points, np.arange(points.top + 1), info)
        np.testing.assert_array_equal(found, [-1.7e308, -1e308, 0, 1e308, 1.7e308])

    @pytest.mark.parametrize("length", [100, 2**20, 2**40, MAX_VARINT])
    def test_absurd_lengths(self, length):
        info = info_of("u1", (3, 4, 2), 0, 9)
        body = b"\x00\x01\x03" + write_varint(length) + bytes(20)
        with pytest.raises(TruncatedStreamError, match=f"lattice: a slab: {length} bytes"):
            read_lattice(body, info, None, 1)

    def test_what_follows_is_refused(self):
        case = some_case()
        for tail in (b"\x00", bytes(900)):
            with pytest.raises(CorruptStreamError, match=f"lattice: {len(tail)} bytes follow"):
                decode_chunk(case.stream(case.body + tail))

    def test_a_code_that_starts_with_255(self):
        info = info_of("u1", (3, 4, 2), 0, 9)
        with pytest.raises(CorruptStreamError, match="slab 0"):
            read_lattice(section(b"\x00\x01", 3, [b"\xff" * 4]), info, None, 1)

    def test_which_slab_is_damaged(self, damaged_slab):
        coded = lattice_section.parse_lattice(damaged_slab.body, damaged_slab.info)
        n_bytes = len(coded.payloads[1])
        with pytest.raises(CorruptStreamError, match=f"the {n_bytes} bytes of slab 1 do not"):
            decode_chunk(damaged_slab.stream())

    @pytest.mark.parametrize(
        "shape", [(1 << 22, 1, 1), (1 << 11, 1 << 11, 1, 1), (1, 1 << 11, 1 << 11), (1 << 22,)]
    )
    def test_a_short_section_asks_for_little_before_it_runs_out(self, shape):
        info = info_of("u1", shape, 0, 9)
        for body in (b"\x00\x01\x01\x05", b"\x00\x01\x01\x05" + bytes(4)):
            with AllocationMeter() as meter, pytest.raises(FormatError):
                read_lattice(body, info, None, 1)
            assert meter.peak_bytes < 5 * (1 << 22) + (1 << 20)


class TestReading:
    """What stands beside a whole decode on the CPU."""

    @settings(max_examples=40)
    @given(strategies.arrays(max_voxels=300), st.data())
    def test_parts_are_those_of_the_whole(self, array, data):
        stream = encode_chunk(array, asked("auto", max_error=2.0))
        assume(Section.LATTICE in header_of(stream).sections)
        whole = decode_chunk(stream)
        for _ in range(4):
            bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in array.shape]
            box = tuple(slice(*pair) for pair in bounds)
            part = decode_region(stream, box)
            assert part.dtype == array.dtype
            np.testing.assert_array_equal(part, whole[box])

    @settings(max_examples=40)
    @given(strategies.arrays(max_voxels=300), st.integers(1, 60), st.data())
    def test_parts_of_slabs_are_those_of_the_whole(self, array, slab_voxels, data):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lattice_section, "_SLAB_VOXELS", slab_voxels)
            stream = encode_chunk(array, asked("auto", max_error=2.0))
        assume(Section.LATTICE in header_of(stream).sections)
        whole = decode_chunk(stream)
        places = [data.draw(st.integers(0, n - 1)) for n in array.shape]
        for reach in (1, 2, max(array.shape)):
            box = tuple(slice(place, place + reach) for place in places)
            np.testing.assert_array_equal(decode_region(stream, box), whole[box])

    def test_planes_are_decoded_when_they_are_needed(self, monkeypatch):
        array = contents("mixed", (2, 9, 6, 5), "u1")
        monkeypatch.setattr(lattice_section, "_SLAB_VOXELS", 90)
        stream = encode_chunk(array, asked(max_error=1.0))
        decoded = []
        decode_planes = lattice_coder.decode_planes

        def count(payload, state, memory, first, stop, *rest):
            decoded.append((first, stop))
            return decode_planes(payload, state, memory, first, stop, *rest)

        monkeypatch.setattr(lattice_coder, "decode_planes", count)
        for box, planes in (
            ((1, slice(4, 5), slice(0, 1), slice(2, 3)), [(0, 2)]),
            ((1, slice(3, 5), slice(0, 6), slice(0, 5)), []),
            ((1, slice(3, 6), slice(0, 6), slice(0, 5)), [(2, 3)]),
            ((1, slice(0, 1), slice(5, 6), slice(0, 5)), [(0, 1)]),
            ((0, slice(0, 9), slice(0, 6), slice(0, 5)), [(0, 3), (0, 3), (0, 3)]),
            ((1, slice(0, 9), slice(0, 6), slice(0, 5)), [(1, 3), (0, 3)]),
        ):
            decoded.clear()
            volume, *rest = box
            found = decode_region(stream, (slice(volume, volume + 1), *rest))
            assert sorted(decoded) == sorted(planes)
            assert np.abs(found[0].astype(int) - array[volume][tuple(rest)]).max() <= 1

    @pytest.mark.parametrize("shape", [(40, 30, 20), (3, 40, 6, 5), (5, 12, 6, 5), (300, 4), (17,)])
    def test_slabs_of_the_planes_that_were_asked_for(self, shape):
        array = contents("mixed", shape, "u1")
        stream = encode_chunk(array, asked("lattice", max_error=1.0, tile=16))
        header = header_of(stream)
        coded = lattice_section.parse_lattice(header.sections[Section.LATTICE], header.info)
        volumes, depth, _, _ = coded.shape
        sizes = [slab.stop - slab.start for slab in coded.slabs]
        if depth > 16:
            assert sizes == volumes * [*[16] * (depth // 16), *([depth % 16] if depth % 16 else [])]
        else:
            assert sizes == [volumes * depth]
        assert np.abs(decode_chunk(stream).astype(int) - array).max() <= 1

    def test_the_memory_of_what_goes_on_is_counted(self):
        array = contents("mixed", (40, 30, 20), "u1")
        header = header_of(encode_chunk(array, asked("lattice", max_error=1.0, tile=16)))
        coded = lattice_section.parse_lattice(header.sections[Section.LATTICE], header.info)
        indices = np.empty(array.shape, np.int32)
        states = lattice_section.decode_slabs(coded, None, {0: 1, 1: 15, 2: 8}, indices, 1)
        for number, state in states.items():
            held = state.coder.nbytes + sum(part.nbytes for part in state.memory)
            limit = lattice_section.state_bytes(coded.slabs[number], coded.shape)
            assert limit / 4 < held <= limit if number < 2 else held == state.coder.nbytes

    def test_threads_that_go_on_with_one_slab(self):
        array = contents("mixed", (40, 30, 20), "u1")
        stream = encode_chunk(array, asked(max_error=1.0))
        whole = decode_chunk(stream)
        for _ in range(5):
            CACHE.clear()
            planes = np.random.default_rng(0).permutation(40)
            with ThreadPoolExecutor(8) as pool:
                found = pool.map(
                    lambda z: decode_region(stream, (slice(z, z + 1), slice(0, 30), slice(0, 20))),
                    planes.tolist(),
                )
                for z, plane in zip(planes, found, strict=True):
                    np.testing.assert_array_equal(plane[0], whole[z])

    def test_only_what_is_asked_for_must_be_intact(self, damaged_slab):
        info, stream = damaged_slab.info, damaged_slab.stream()
        slabs = lattice_section.parse_lattice(damaged_slab.body, info).slabs
        inner = [slice(0, n) for n in info.shape[1:]]
        decode_region(stream, (slabs[0], *inner))
        with pytest.raises(CorruptStreamError, match="of slab 1 do not"):
            decode_region(stream, (slabs[1], *inner))

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "f2", ">f4", "f8"])
    def test_levels_are_means(self, dtype, order):
        for shape in ((13, 8, 9), (2, 5, 6, 7), (11, 10), (17,)):
            array = np.asarray(contents("mixed", shape, dtype), order=order)
            stream = encode_chunk(array, asked(max_error=1.0))
            decoded = decode_chunk(stream)
            for level in (1, 2, 5):
                found = decode_level(stream, level)
                means = block_means(decoded.astype("f8"), level)
                assert found.dtype == array.dtype
                assert found.shape == means.shape
                rounding = 0.5 if array.dtype.kind in "iu" else 4 * float(np.spacing(found.max()))
                assert np.abs(found - means).max() <= rounding

    def test_levels_leave_out_what_is_not_finite(self):
        array = contents("mixed", (6, 6, 6), "f4")
        array[:2, :2, :2] = np.nan
        array[4, 4, 4] = np.inf
        stream = encode_chunk(array, SOME)
        found, decoded = decode_level(stream, 1), decode_chunk(stream)
        assert np.isnan(found[0, 0, 0])
        block = decoded[4:, 4:, 4:]
        assert found[2, 2, 2] == pytest.approx(block[np.isfinite(block)].mean(), abs=1e-5)

    def test_levels_of_the_largest_numbers(self):
        array = np.random.default_rng(0).choice([-1.5e308, 0.0, 0.0, 1.5e308, 1.7e308], (6, 6, 6))
        stream = encode_chunk(array, asked(max_error=1e307))
        means = block_means(decode_chunk(stream) / 64, 1)
        np.testing.assert_allclose(decode_level(stream, 1) / 64, means, rtol=0, atol=1e292)

    @pytest.mark.parametrize("dtype", ["u1", ">u2", "i4", "f2", ">f4", "f8"])
    def test_tensors_hold_what_arrays_hold(self, dtype):
        pytest.importorskip("torch")
        array = contents("mixed", (2, 5, 6, 7), dtype)
        arrays = [array, array[:, ::-1], np.full(array.shape, 4, dtype)]
        if array.dtype.kind == "f":
            holes = array.copy()
            holes[0, 1:3], holes[1, 2, 3, 4] = np.nan, -np.inf
            arrays.append(holes)
        streams = encode_chunks(arrays, asked(max_error=1.0))
        # Among others, as a batch may be.
        streams.append(encode_chunk(smooth_volume((9, 9), "f4"), asked("features", ratio=2)))
        with config.set(device="cpu"):
            expected = decode_chunks(streams)
            found = decode_chunks_on_device(streams)
        for tensor, one in zip(found, expected, strict=True):
            assert tuple(tensor.shape) == one.shape
            np.testing.assert_array_equal(tensor.numpy(), one)

    def test_the_path_of_gpus(self, monkeypatch):
        arrays = [contents("mixed", (9, 8, 7), "u2"), contents("ramp", (6, 5), "f4")]
        streams = encode_chunks(arrays, asked(max_error=1.0))
        streams.append(encode_chunk(smooth_volume((9, 9), "f4"), asked("features", ratio=2)))
        expected = decode_chunks(streams)
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
        found = decode_chunks(streams)
        for one, other in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(found[2], expected[2], atol=1e-2)


def block_means(volume: np.ndarray, level: int) -> np.ndarray:
    """Mean over blocks of 2^level voxels along the last three axes, as far as they reach."""
    for axis in range(max(0, volume.ndim - 3), volume.ndim):
        starts = np.arange(0, volume.shape[axis], 1 << level)
        counts = np.diff([*starts, volume.shape[axis]])
        shape = [-1 if a == axis else 1 for a in range(volume.ndim)]
        volume = np.add.reduceat(volume, starts, axis=axis) / counts.reshape(shape)
    return volume


class TestRewriting:
    """A part of a chunk is overwritten."""

    def rewrite(
        self, truth: np.ndarray, touched: np.ndarray, new: object, params: EncodingParams
    ) -> tuple[bytes, np.ndarray, np.ndarray]:
        """The new stream, what the old one decoded to, and what the chunk should hold."""
        old = open_old(encode_chunk(truth, params))
        assert Section.LATTICE in old.header.sections
        before = old.decode()
        array = before.copy()
        array[touched] = new
        wanted = truth.copy()
        wanted[touched] = new
        return rewrite_chunk(old, array, touched, params), before, wanted

    @pytest.mark.parametrize("model", ["lattice", "auto"])
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "i4", "f2", ">f4", "f8"])
    def test_within_the_range_untouched_voxels_do_not_move(self, dtype, model):
        params = asked(model, max_error=2)
        truth = contents("mixed", (8, 9, 10), dtype)
        touched = np.zeros(truth.shape, bool)
        touched[2:4, 1:7, 3] = True
        new = contents("noise", truth.shape, dtype)[touched]
        stream, before, wanted = self.rewrite(truth, touched, new, params)
        found = decode_chunk(stream)
        np.testing.assert_array_equal(found[~touched], before[~touched])
        error = error_of(wanted, found)
        assert error <= min(2, header_of(stream).max_error)

    @pytest.mark.parametrize("model", ["lattice", "auto"])
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "i4", "f2", ">f4", "f8"])
    def test_beyond_the_range_the_bound_holds(self, dtype, model):
        params = asked(model, max_error=2)
        truth = contents("mixed", (8, 9, 10), dtype)
        for value in (255 if dtype == "u1" else 1500, 121):
            touched = np.zeros(truth.shape, bool)
            touched[5, 5, 2:6] = True
            stream, _, wanted = self.rewrite(truth, touched, value, params)
            error = error_of(wanted, decode_chunk(stream))
            assert error <= min(2, header_of(stream).max_error)

    @pytest.mark.parametrize("model", ["lattice", "auto"])
    def test_exact_integers_stay_exact(self, model):
        truth = contents("mixed", (8, 9, 10), "i2")
        touched = np.zeros(truth.shape, bool)
        touched[5, 5, 2:6] = True
        for value in (33, -32768, 32767):
            stream, _, wanted = self.rewrite(truth, touched, value, asked(model, max_error=0))
            np.testing.assert_array_equal(decode_chunk(stream), wanted)
            assert header_of(stream).max_error == 0

    @pytest.mark.parametrize("model", ["lattice", "auto"])
    def test_a_range_that_no_exact_lattice_spans(self, model):
        """The old points still do, where a new lattice would have no step that is fine enough."""
        params = asked(model, max_error=200)
        rng = np.random.default_rng(0)
        truth = (rng.integers(-(2**30), 2**30, (6, 7, 8))).astype("i4")
        touched = np.zeros(truth.shape, bool)
        touched[2, 3:5] = True
        stream, before, wanted = self.rewrite(truth, touched, 12345, params)
        found = decode_chunk(stream)
        np.testing.assert_array_equal(found[~touched], before[~touched])
        assert error_of(wanted, found) <= 200

    @pytest.mark.parametrize("model", ["lattice", "auto"])
    @pytest.mark.parametrize("dtype", ["f2", ">f4", "f8"])
    def test_missing_values_come_and_go(self, dtype, model):
        params = asked(model, max_error=1.0)
        truth = contents("mixed", (8, 9, 10), dtype)
        truth[0, :4], truth[7, 7, 7] = np.nan, np.inf
        stream = encode_chunk(truth, params)
        for number, value in enumerate((np.nan, 60.0, -np.inf, 40.0)):
            touched = np.zeros(truth.shape, bool)
            touched[2 * number : 2 * number + 2, 1:6] = True
            old = open_old(stream)
            array = old.decode()
            array[touched] = truth[touched] = value
            stream = rewrite_chunk(old, array, touched, params)
            error = error_of(truth, decode_chunk(stream))
            assert error <= min(1, header_of(stream).max_error)

    @pytest.mark.parametrize("dtype", ["u1", ">i2", "f2", ">f4", "f8"])
    def test_many_rewrites(self, dtype):
        params = asked("auto", max_error=3)
        truth = contents("mixed", (8, 9, 10), dtype)
        stream = encode_chunk(truth, params)
        rng = np.random.default_rng(0)
        for number in range(8):
            touched = rng.random(truth.shape) < 0.1
            old = open_old(stream)
            array = old.decode()
            new = (rng.random(int(touched.sum())) * (40 + 10 * number)).astype(truth.dtype)
            array[touched] = truth[touched] = new
            stream = rewrite_chunk(old, array, touched, params)
            assert error_of(truth, decode_chunk(stream)) <= 3

    def test_a_psnr(self):
        params = asked(psnr=50.0)
        truth = contents("mixed", (8, 9, 10), "f4")
        touched = np.zeros(truth.shape, bool)
        touched[3] = True
        stream, before, wanted = self.rewrite(truth, touched, 55.5, params)
        found = decode_chunk(stream)
        read = before.copy()
        read[touched] = 55.5
        span = float(np.ptp(read))
        assert 10 * math.log10(span**2 / np.mean((read - found).astype("f8") ** 2)) >= 50
        header = header_of(stream)
        assert error_of(wanted, found) <= header.max_error
        assert 10 * math.log10(span**2 / np.mean((wanted - found).astype("f8") ** 2)) >= header.psnr
