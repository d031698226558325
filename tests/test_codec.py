"""The codec end to end: the promise of the ratio, exact facts, and streams that lie."""

import math
import struct
import threading
from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests import features_reference, strategies, tree_reference
from tests.faces import brain, smooth_volume
from tests.memory import AllocationMeter
from tinc_codec import config
from tinc_codec.bitstream.header import (
    Header,
    Layout,
    read_header_only,
    read_stream,
    write_stream,
)
from tinc_codec.bitstream.scalars import float32_bound
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, decode_chunks, encode_chunk, encode_chunks
from tinc_codec.errors import (
    CorruptStreamError,
    FormatError,
    LimitError,
    TargetError,
    TruncatedStreamError,
    UnsupportedDataError,
)
from tinc_codec.fit import plan as plan_module
from tinc_codec.fit.features import FeatureFit, FeatureTarget
from tinc_codec.metrics import measure
from tinc_codec.params import MAX_EFFORT, EncodingParams
from tinc_codec.volume.chunk import analyse

LIMIT = 1 << 32
QUICK = EncodingParams(ratio=4, effort=0)
SECTIONS = {"tree": Section.TREE, "features": Section.FEATURES}

both_models = pytest.mark.parametrize("model", SECTIONS)


def params(ratio: float = 4, **changes) -> EncodingParams:
    return EncodingParams(ratio=ratio, **{"effort": 0, **changes})


def header_of(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=LIMIT)


def body_of(stream: bytes, section: Section) -> bytes:
    return bytes(header_of(stream).sections[section])


def signed(content: bytes | bytearray) -> bytes:
    """Put the right checksum in place of the last four bytes."""
    content = bytes(content[:-4])
    return content + struct.pack("<I", google_crc32c.value(content))


def with_section(stream: bytes, section: Section, body: bytes) -> bytes:
    """The stream with another body of a section, everything else consistent."""
    header = header_of(stream)
    sections = {**header.sections, section: body}
    return write_stream(Header(header.info, header.psnr, header.max_error, sections))


@pytest.fixture
def short_fits(monkeypatch):
    """Fits of 12 steps: what must hold of every stream holds of badly fitted ones too."""
    monkeypatch.setattr(plan_module, "STEPS_BY_EFFORT", (12,) * (MAX_EFFORT + 1))


def assert_same_layout(found: np.ndarray, array: np.ndarray) -> None:
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    assert found.dtype.str == array.dtype.str
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    assert found.flags.f_contiguous if fortran else found.flags.c_contiguous
    assert found.flags.writeable


def assert_exact_facts(found: np.ndarray, array: np.ndarray, stream: bytes) -> None:
    """What holds of every chunk, however badly it is approximated."""
    assert_same_layout(found, array)
    if array.dtype.kind == "f":
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(found), test(array))
    finite = np.isfinite(array.astype("f8"))
    if finite.any():
        assert found[finite].min() >= array[finite].min()
        assert found[finite].max() <= array[finite].max()
    header = header_of(stream)
    valid = header.info.valid_slices
    counted = finite[valid]
    if counted.any():
        quality = measure(array[valid], found[valid], counted)
        assert header.psnr == float32_bound(quality.psnr, -math.inf)
        assert header.max_error == float32_bound(quality.max_error, math.inf)
        assert header.info.value_min == array[valid][counted].min()
        assert header.info.value_max == array[valid][counted].max()
    else:
        assert (header.psnr, header.max_error) == (math.inf, 0.0)
    outside = np.ones(array.shape, bool)
    outside[valid] = False
    width = array.dtype.itemsize
    same = found[outside].view(f"u{width}") == array[outside].view(f"u{width}")
    assert same.all()


@pytest.mark.usefixtures("short_fits")
class TestPromise:
    """Bytes at most raw bytes / ratio, for any chunk at all, or an error that says what can be."""

    @both_models
    @settings(max_examples=100)
    @given(array=strategies.arrays(max_voxels=900), ratio=st.floats(1.01, 40))
    @example(array=np.array([1.0, 2.0]), ratio=1.01)
    @example(array=np.arange(5000, dtype=">i2"), ratio=40.0)
    def test_every_chunk(self, model, array, ratio):
        before = array.copy()
        try:
            stream = encode_chunk(array, params(ratio, model=model))
        except TargetError as error:
            possible = float(str(error).split("largest possible ratio for it is ")[1].split(";")[0])
            assert possible < ratio
            if possible <= 1:
                return
            stream = encode_chunk(array, params(possible, model=model))
            assert len(stream) * possible <= array.nbytes
        else:
            assert len(stream) * ratio <= array.nbytes
        assert array.tobytes() == before.tobytes()
        assert_exact_facts(decode_chunk(stream), array, stream)

    @pytest.mark.parametrize("model", ["auto", *SECTIONS])
    @settings(max_examples=40)
    @given(
        voxels=st.integers(2, 400),
        slack=st.integers(1, 30),
        dtype=st.sampled_from(["u1", ">f8", "<i2"]),
    )
    def test_the_edge_of_what_is_possible(self, model, voxels, slack, dtype):
        rng = np.random.default_rng(voxels)
        array = rng.integers(0, 100, voxels).astype(dtype)
        assume(array.min() < array.max())
        with pytest.raises(TargetError) as caught:
            encode_chunk(array, params(100_000, model=model))
        possible = float(str(caught.value).split(" for it is ")[1].split(";")[0])
        assume(possible > 1.001)
        stream = encode_chunk(array, params(possible, model=model))
        assert len(stream) * possible <= array.nbytes
        lower = max(1.0001, possible - slack / 50)
        assert len(encode_chunk(array, params(lower, model=model))) * lower <= array.nbytes

    @settings(max_examples=25)
    @given(strategies.arrays(max_voxels=500, max_ndim=4), st.data())
    def test_all_settings(self, array, data):
        levels = data.draw(st.sampled_from(["auto", 1, 2, 3, 6]))
        chosen = params(
            2,
            model="tree",
            levels=levels,
            layers=data.draw(st.sampled_from(["auto", 1, 3, 8])),
            node_split=data.draw(st.sampled_from(["auto", "equal", "aoi", "variance"])),
            pruning=data.draw(st.sampled_from(["auto", "none", "iterative", "dynamic"])),
            w0=data.draw(st.sampled_from(["auto", 0.01, 30.0, 1000.0])),
            level_split="auto" if levels == "auto" else [1.0] * levels,
        )
        try:
            stream = encode_chunk(array, chosen)
        except TargetError:
            return
        assert len(stream) * 2 <= array.nbytes
        assert_exact_facts(decode_chunk(stream), array, stream)

    def test_impossible_ratio_names_chunk_and_remedy(self):
        array = np.arange(100, dtype="<u2")
        with pytest.raises(TargetError, match=r"\(100,\).*uint16.*larger chunks or a smaller"):
            encode_chunk(array, params(50))

    def test_constant_chunks_can_be_too_small_too(self):
        with pytest.raises(TargetError, match="largest possible ratio"):
            encode_chunk(np.zeros(8, "u1"), params(2))

    def test_one_chunk_that_fails_fails_the_call(self):
        small, large = np.arange(10, dtype="f4"), smooth_volume((16, 16, 16))
        with pytest.raises(TargetError):
            encode_chunks([large, small], params(8))


class TestQuality:
    @both_models
    def test_a_smooth_volume(self, model):
        array = smooth_volume((24, 24, 24))
        stream = encode_chunk(array, params(16, effort=1, model=model))
        assert len(stream) * 16 <= array.nbytes
        header = header_of(stream)
        # A trilinear ramp between the corners of such a volume gives about 20 dB.
        assert header.psnr > 35
        assert_exact_facts(decode_chunk(stream), array, stream)

    @both_models
    @pytest.mark.parametrize("shape", [(6000,), (60, 50), (2, 12, 12, 12)])
    def test_lines_planes_and_batches(self, shape, model):
        array = smooth_volume(shape)
        stream = encode_chunk(array, params(16, effort=1, model=model))
        assert len(stream) * 16 <= array.nbytes
        assert header_of(stream).psnr > 25

    @both_models
    def test_more_bytes_help(self, model):
        rng = np.random.default_rng(0)
        array = smooth_volume((20, 20, 20)) + rng.normal(0, 0.5, (20, 20, 20)).astype("f4")
        array += 20 * np.sin(np.arange(20) * 1.3).astype("f4")
        few, many = (
            header_of(encode_chunk(array, params(r, effort=1, model=model))) for r in (64, 8)
        )
        assert many.psnr > few.psnr + 3

    @pytest.mark.slow
    @pytest.mark.parametrize("ratio", [64, 256])
    @pytest.mark.parametrize("dtype", ["<u2", "<f4", "u1"])
    def test_a_tree_uses_its_budget(self, ratio, dtype):
        rng = np.random.default_rng(0)
        volume = smooth_volume((64, 64, 64)) + rng.normal(0, 3, (64, 64, 64)).astype("f4")
        array = volume.clip(0, 250).astype(dtype)
        stream = encode_chunk(array, params(ratio, model="tree"))
        assert 0.97 <= len(stream) * ratio / array.nbytes <= 1

    @pytest.mark.parametrize("ratio", [4, 16, 64, 256])
    @pytest.mark.parametrize("dtype", ["<u2", "<f4", "u1"])
    def test_features_use_their_budget(self, ratio, dtype):
        array = brain(48).astype(dtype)
        stream = encode_chunk(array, params(ratio, model="features"))
        # A step changes the size by 1 to 2 %, the coder's words by up to 4 bytes.
        assert 0.975 * array.nbytes / ratio - 4 <= len(stream) <= array.nbytes / ratio


@pytest.mark.usefixtures("short_fits")
class TestSpecialChunks:
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "<i4", "<f2", ">f4", "<f8"])
    @pytest.mark.parametrize("value", [0, 7, 100])
    def test_constant(self, dtype, value):
        array = np.full((16, 16, 16), value, dtype)
        stream = encode_chunk(array, params(20))
        assert len(stream) < 50
        np.testing.assert_array_equal(decode_chunk(stream), array)
        assert header_of(stream).psnr == math.inf

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_one_finite_voxel(self, value):
        array = np.full((9, 8, 7), value, ">f4")
        stream = encode_chunk(array, params(20))
        np.testing.assert_array_equal(decode_chunk(stream), array)

    def test_all_kinds_of_not_finite(self):
        array = np.full((9, 8, 7), np.nan, "<f8")
        array[2:4] = np.inf
        array[5] = -np.inf
        stream = encode_chunk(array, params(20))
        np.testing.assert_array_equal(decode_chunk(stream), array)

    def test_one_finite_value_among_nan(self):
        array = np.full((9, 8, 7), np.nan, "<f4")
        array[3, 3, 3] = -2.5
        found = decode_chunk(encode_chunk(array, params(20)))
        np.testing.assert_array_equal(found, array)

    @both_models
    def test_two_finite_values_among_nan(self, model):
        array = np.full((9, 8, 7), np.nan, "<f4")
        array[3, 3, 3], array[5, 5, 5] = -2.5, 4
        stream = encode_chunk(array, params(8, model=model))
        assert_exact_facts(decode_chunk(stream), array, stream)

    @pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (1, 1, 1, 1, 1)])
    def test_a_single_voxel_is_larger_than_it_was(self, shape):
        with pytest.raises(TargetError, match="larger chunks"):
            encode_chunk(np.full(shape, 3.25, "<f8"), params(1.01))

    @both_models
    def test_two_values_differing_in_the_last_bit(self, model):
        low = np.float64(1.0)
        array = np.where(np.arange(900).reshape(9, 10, 10) % 2, low, np.nextafter(low, 2))
        stream = encode_chunk(array, params(8, model=model))
        assert_exact_facts(decode_chunk(stream), array, stream)

    @both_models
    def test_extremes_of_float64(self, model):
        rng = np.random.default_rng(0)
        top = np.finfo("f8").max
        array = rng.choice([-top, top, 0.0], (10, 10, 10))
        stream = encode_chunk(array, params(8, model=model))
        found = decode_chunk(stream)
        assert np.isfinite(found).all()
        assert_exact_facts(found, array, stream)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros(0),
            np.zeros((4, 0, 4)),
            np.zeros(()),
            np.zeros((1,) * 6),
            np.zeros((8, 8), bool),
            np.zeros((8, 8), complex),
            np.zeros((8, 8), "i8"),
            np.zeros((8, 8), "u8"),
            np.zeros((8, 8), "S3"),
            np.zeros((8, 8), "U3"),
            np.zeros((8, 8), object),
            np.zeros((8, 8), "M8[s]"),
            np.zeros((8, 8), [("a", "f4")]),
        ],
        ids=lambda array: f"{array.dtype}-{array.shape}",
    )
    def test_unsupported(self, array):
        with pytest.raises(UnsupportedDataError):
            encode_chunk(array, QUICK)

    @both_models
    def test_edge_chunks_cost_what_their_inside_costs(self, model):
        array = np.full((32, 32, 32), 9999, "<u2")
        array[:10, :, :7] = smooth_volume((10, 32, 7))
        stream = encode_chunk(array, params(40, model=model))
        info = header_of(stream).info
        assert info.valid_extent == (10, 32, 7)
        assert_exact_facts(decode_chunk(stream), array, stream)

    @pytest.mark.parametrize("shape", [(3, 8, 8, 8), (2, 3, 6, 7, 5), (1, 1, 9, 9, 9)])
    @pytest.mark.parametrize("order", "CF")
    @both_models
    def test_batches(self, shape, order, model):
        rng = np.random.default_rng(0)
        array = np.asarray(rng.integers(0, 50, shape).astype("<i2"), order=order)
        array = np.asarray(array + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) * 100,
                           order=order).astype("<i2", order=order)  # fmt: skip
        stream = encode_chunk(array, params(3, model=model))
        found = decode_chunk(stream)
        assert_exact_facts(found, array, stream)
        # Every volume has an offset of its own, so that steps between them cost nothing.
        means = array.reshape(math.prod(shape[:-3]), -1).mean(axis=1)
        found_means = found.reshape(math.prod(shape[:-3]), -1).mean(axis=1)
        np.testing.assert_allclose(found_means, means, atol=20)

    @both_models
    def test_a_constant_volume_among_others(self, model):
        array = smooth_volume((3, 8, 8, 8))
        array[1] = 42
        stream = encode_chunk(array, params(4, model=model))
        found = decode_chunk(stream)
        np.testing.assert_allclose(found[1], 42, atol=1e-3)

    def test_lists_are_arrays(self):
        values = [[float(i + j) for j in range(30)] for i in range(30)]
        assert decode_chunk(encode_chunk(values, QUICK)).shape == (30, 30)


class TestInputs:
    def test_arrays_are_only_read(self):
        array = smooth_volume((12, 12, 12))
        array[3] = np.nan
        array.flags.writeable = False
        stream = encode_chunk(array, QUICK)
        assert np.isnan(decode_chunk(stream)[3]).all()

    def test_streams_may_be_any_buffer(self):
        array = smooth_volume((12, 12, 12), "u1")
        stream = encode_chunk(array, QUICK)
        expected = decode_chunk(stream)
        copies = [
            bytearray(stream),
            memoryview(stream),
            np.frombuffer(stream, np.uint8),
            np.frombuffer(stream + b"\0", np.uint8)[: len(stream)],
        ]
        for copy in copies:
            np.testing.assert_array_equal(decode_chunk(copy), expected)

    def test_any_strides_give_the_same_bytes(self):
        array = smooth_volume((12, 10, 11))
        wide = np.zeros((24, 20, 22), "f4")
        wide[::2, ::2, ::2] = array
        assert encode_chunk(wide[::2, ::2, ::2], QUICK) == encode_chunk(array, QUICK)
        flipped = np.ascontiguousarray(array[::-1])
        assert encode_chunk(flipped[::-1], QUICK) == encode_chunk(array, QUICK)

    @both_models
    def test_layout_changes_only_the_header(self, model):
        array, section = smooth_volume((12, 10, 11)), SECTIONS[model]
        expected = body_of(encode_chunk(array, params(model=model)), section)
        for other in (np.asfortranarray(array), array.astype(">f4")):
            assert body_of(encode_chunk(other, params(model=model)), section) == expected


class TestRepeatability:
    @both_models
    def test_the_same_chunk_gives_the_same_bytes(self, model):
        array, chosen = smooth_volume((12, 12, 12)), params(model=model)
        assert encode_chunk(array, chosen) == encode_chunk(array.copy(), chosen)

    def test_a_seed_gives_another_tree(self):
        array = smooth_volume((12, 12, 12))
        one, other = (encode_chunk(array, params(model="tree", seed=seed)) for seed in (0, 1))
        assert one != other

    @pytest.mark.parametrize("model", ["auto", "tree"])
    def test_many_at_once_are_as_one_by_one(self, model):
        chosen = params(model=model)
        rng = np.random.default_rng(0)
        arrays = [smooth_volume((12, 12, 12)) * scale for scale in (1, 3)]
        arrays.append(rng.integers(0, 9, (12, 12, 12)).astype("u1"))
        arrays.append(smooth_volume((40, 30), ">i2"))
        arrays.append(np.full((12, 12, 12), 5, "f4"))
        arrays.append(np.where(arrays[0] > 50, np.nan, arrays[0]).astype("f4"))
        arrays.append(smooth_volume((2, 8, 8, 8), "<f8", "F"))
        together = encode_chunks(arrays, chosen)
        assert len(together) == len(arrays)
        assert together == [encode_chunk(array, chosen) for array in arrays]
        for found, array, stream in zip(decode_chunks(together), arrays, together, strict=True):
            assert_exact_facts(found, array, stream)
            np.testing.assert_array_equal(found, decode_chunk(stream))

    def test_nothing_to_do(self):
        assert encode_chunks([], QUICK) == []
        assert decode_chunks([]) == []

    @pytest.mark.parametrize("threads", [2, 5])
    @pytest.mark.parametrize(
        "chosen",
        [
            params(model="tree"),
            params(model="features"),
            EncodingParams(psnr=50, effort=0),
            EncodingParams(max_error=0.5, effort=0),
        ],
        ids=lambda chosen: next(iter(chosen.to_config())) + chosen.model,
    )
    def test_threads_change_no_byte(self, threads, chosen):
        arrays = [smooth_volume((16, 16, 16)), smooth_volume((2, 8, 8, 8)), brain(64)]
        if chosen.model == "tree":
            del arrays[2]
        with config.set(threads=1):
            expected = encode_chunks(arrays, chosen)
            voxels = decode_chunks(expected)
        with config.set(threads=threads):
            assert encode_chunks(arrays, chosen) == expected
            for one, other in zip(decode_chunks(expected), voxels, strict=True):
                np.testing.assert_array_equal(one, other)

    @both_models
    def test_calls_from_many_threads(self, model):
        chosen = params(model=model)
        arrays = [smooth_volume((10, 10, 10 + i)) for i in range(4)]
        expected = [encode_chunk(array, chosen) for array in arrays]
        streams = [b""] * 4

        def work(i: int) -> None:
            streams[i] = encode_chunk(arrays[i], chosen)
            decode_chunk(streams[i])

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert streams == expected

    @pytest.mark.parametrize("shape", [(14, 9, 17), (2, 9, 9, 9), (50, 23), (300,)])
    @both_models
    def test_voxels_are_those_of_the_second_reader(self, shape, model):
        array = smooth_volume(shape)
        stream = encode_chunk(array, params(6, model=model))
        body = body_of(stream, SECTIONS[model])
        volumes, z, y, x = header_of(stream).info.batched_shape
        if model == "tree":
            t = tree_reference.decode(body, (z, y, x), volumes)
        else:
            t = features_reference.values_of(features_reference.read(body, (z, y, x), volumes))
        low, span = float(array.min()), float(np.ptp(array))
        found = (decode_chunk(stream).reshape(t.shape).astype("f8") - low) / span
        np.testing.assert_allclose(found, t.clip(0, 1), rtol=0, atol=1e-5)


KINDS = {
    "tree": {Section.TREE},
    "features": {Section.FEATURES},
    "shared": {Section.TREE, Section.FEATURES},
    "corrected": {Section.FEATURES, Section.CORRECTIONS},
    "lattice": {Section.LATTICE},
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def sample(request) -> tuple[bytes, np.ndarray]:
    """A stream with padding, mask and models of one kind, and what it decodes to."""
    array = smooth_volume((12, 14, 10))
    array[:, 3:5, 2:4] = np.nan
    array[0, 0, 0] = np.inf
    array[:, 12:] = -7.5
    tree, features = (encode_chunk(array, params(12, model=model)) for model in SECTIONS)
    corrected, lattice = (
        encode_chunk(array, EncodingParams(max_error=1.5, effort=0, model=model))
        for model in ("features", "lattice")
    )
    shared = {**header_of(tree).sections, **header_of(features).sections}
    streams = {
        "tree": tree,
        "features": features,
        # Their sum stands for no data, but it is as good a stream as any.
        "shared": write_stream(Header(header_of(tree).info, 10.0, 50.0, shared)),
        "corrected": corrected,
        "lattice": lattice,
    }
    stream = streams[request.param]
    header = header_of(stream)
    assert set(header.sections) == {Section.MASK} | KINDS[request.param]
    assert header.info.has_padding
    return stream, decode_chunk(stream)


def assert_within_range(found: np.ndarray, expected: np.ndarray, header: Header) -> None:
    """What holds of whatever a damaged model section decodes to."""
    assert_same_layout(found, expected)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    inside = found[header.info.valid_slices]
    inside = inside[np.isfinite(inside)]
    assert inside.min() >= header.info.value_min
    assert inside.max() <= header.info.value_max


class TestDamage:
    def test_every_truncation(self, sample):
        stream, _ = sample
        for length in range(len(stream)):
            with pytest.raises(FormatError):
                decode_chunk(stream[:length])
        layout = header_of(stream).layout
        assert isinstance(layout, Layout)
        for length in range(layout.header_bytes, len(stream)):
            with pytest.raises(TruncatedStreamError):
                decode_chunk(stream[:length])

    def test_every_byte_flipped(self, sample):
        stream, _ = sample
        for position in range(len(stream)):
            for bits in (0xFF, 1 << position % 8):
                damaged = bytearray(stream)
                damaged[position] ^= bits
                with pytest.raises(FormatError):
                    decode_chunk(bytes(damaged))

    def test_bytes_after_the_end(self, sample):
        stream, _ = sample
        for extra in (b"\0", b"\0" * 4, stream):
            with pytest.raises(CorruptStreamError):
                decode_chunk(stream + extra)

    @settings(max_examples=200)
    @given(st.binary(max_size=300))
    def test_random_bytes(self, data):
        for stream in (data, b"TINC\x01\x00" + data, signed(b"TINC\x01\x00" + data + bytes(4))):
            try:
                found = decode_chunk(stream)
            except FormatError:
                continue
            assert found.nbytes <= LIMIT

    def test_every_resigned_flip(self, sample):
        """With a right checksum the parsers stand alone: an error or an array of the right kind."""
        stream, expected = sample
        survivors = 0
        for position in range(len(stream) - 4):
            # All eight bits and one of them by turns.
            for bits in (0xFF if position % 2 else 1 << position % 8,):
                damaged = bytearray(stream)
                damaged[position] ^= bits
                damaged = signed(damaged)
                try:
                    info = read_header_only(damaged).info
                    if info.size_bytes > 10**7:
                        # A large shape is no error by itself; see the limits below.
                        continue
                    found = decode_chunk(damaged)
                except FormatError:
                    continue
                survivors += 1
                assert found.shape == info.shape
                assert found.dtype == info.dtype
                assert found.dtype.itemsize in (1, 2, 4, 8)
        assert survivors > 10
        assert expected.shape == (12, 14, 10)

    @settings(max_examples=80)
    @given(data=st.data())
    def test_mutated_models(self, sample, data):
        stream, expected = sample
        header = header_of(stream)
        section = data.draw(st.sampled_from(sorted(set(header.sections) - {Section.MASK})))
        body = bytearray(header.sections[section])
        for _ in range(data.draw(st.integers(1, 8))):
            start = data.draw(st.integers(0, len(body)))
            kind = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
            if kind == "set":
                body[start : start + 1] = data.draw(st.binary(min_size=1, max_size=1))
            elif kind == "cut":
                del body[start : start + data.draw(st.integers(1, 9))]
            elif kind == "insert":
                body[start:start] = data.draw(st.binary(max_size=9))
            else:
                body[start:start] = body[start : start + 9]
        assume(body)
        try:
            found = decode_chunk(with_section(stream, section, bytes(body)))
        except FormatError:
            return
        assert_within_range(found, expected, header)

    def test_a_mask_of_another_chunk(self, sample):
        stream, _ = sample
        header = header_of(stream)
        for mask in (b"\x01", b"\x09", b"\x04", b"\x04\xff\xff\xff\xff"):
            sections = {**header.sections, Section.MASK: mask}
            other = write_stream(Header(header.info, 1.0, 1.0, sections))
            try:
                assert decode_chunk(other).shape == (12, 14, 10)
            except FormatError:
                continue

    def test_models_of_another_chunk(self, sample):
        """Sections that are intact, but of a chunk of other axes."""
        header = header_of(sample[0])
        sections = {k: v for k, v in header.sections.items() if k != Section.MASK}
        for shape in ((14, 12, 10), (2, 12, 12, 10), (12 * 12 * 10,), (3, 3), (1, 1, 2)):
            info = replace(header.info, shape=shape, valid_extent=shape, pad_value=None)
            try:
                found = decode_chunk(write_stream(Header(info, 1.0, 1.0, sections)))
            except FormatError:
                continue
            assert found.shape == shape
            assert found.min() >= header.info.value_min
            assert found.max() <= header.info.value_max


class TestHugeClaims:
    """What a stream declares is checked before it is allocated."""

    def peak_of(self, stream: bytes) -> int:
        with AllocationMeter() as meter, pytest.raises(FormatError):
            decode_chunk(stream)
        return meter.peak_bytes

    def claim(self, sample: tuple[bytes, np.ndarray], shape: tuple[int, ...]) -> bytes:
        """The sample's sections in a chunk of another shape, signed."""
        header = header_of(sample[0])
        info = header.info
        changed = replace(info, shape=shape, valid_extent=shape, pad_value=None)
        return write_stream(Header(changed, 1.0, 1.0, header.sections))

    @pytest.mark.parametrize(
        "shape", [(2**31, 2**31, 2**31), (2**62,), (1, 2**33), (2**20, 1, 1, 2**20)]
    )
    def test_beyond_the_limit(self, sample, shape):
        stream = self.claim(sample, shape)
        with pytest.raises(LimitError):
            decode_chunk(stream)
        assert self.peak_of(stream) < 10**6

    @pytest.mark.parametrize("shape", [(1000, 1000, 1000), (2**29, 1, 1, 1), (2**29,)])
    def test_a_tree_below_the_limit_that_cannot_be(self, shape):
        stream = encode_chunk(smooth_volume((12, 12, 10)), params(12, model="tree"))
        body = bytearray(body_of(stream, Section.TREE))
        body[0] = 7
        info = replace(header_of(stream).info, shape=shape, valid_extent=shape)
        claim = write_stream(Header(info, 1.0, 1.0, {Section.TREE: bytes(body)}))
        assert self.peak_of(claim) < 10**6

    def test_more_volumes_than_features_have_bytes(self):
        stream = encode_chunk(smooth_volume((12, 12, 10)), params(12, model="features"))
        shape = (2**13, 2**13, 1, 1, 8)
        info = replace(header_of(stream).info, shape=shape, valid_extent=shape)
        sections = header_of(stream).sections
        assert self.peak_of(write_stream(Header(info, 1.0, 1.0, sections))) < 10**6

    # Lines and planes pay for the margins of their bands.
    @pytest.mark.parametrize(
        ("shape", "most"), [((128, 128, 128), 24), ((2, 600, 600), 40), ((2**19,), 200)]
    )
    @pytest.mark.parametrize("damaged", [False, True])
    def test_memory_for_features_is_bounded_by_the_voxels(self, shape, most, damaged):
        """Whatever the stream says: zeros take no bytes, so that few bytes may say much."""
        info, _ = analyse(smooth_volume((9, 9), "u1"))
        info = replace(info, shape=shape, valid_extent=shape)
        values = np.zeros(info.batched_shape, np.float32)
        fit = FeatureFit(FeatureTarget(values, None), 1)
        features, _ = fit.quantise(0)
        body = fit.write(features)
        assert len(body) < 20
        if damaged:
            body = body[:-1] + b"\x04" + b"\x5a" * 4
        stream = write_stream(Header(info, 1.0, 1.0, {Section.FEATURES: body}))
        with AllocationMeter() as meter:
            if damaged:
                with pytest.raises(FormatError):
                    decode_chunk(stream)
            else:
                assert (decode_chunk(stream) == info.value_min).all()
        assert meter.peak_bytes < most * math.prod(shape)

    def test_the_limit_is_configurable(self, sample):
        stream, expected = sample
        with config.set(max_decoded_bytes=expected.nbytes):
            decode_chunk(stream)
        with config.set(max_decoded_bytes=expected.nbytes - 1), pytest.raises(LimitError):
            decode_chunk(stream)

    def test_many_parameters_in_few_bytes(self):
        """Tensors of zeros take no bytes, but are bounded by the chunk's voxels."""
        array = smooth_volume((16, 16, 16), "u1")
        stream = encode_chunk(array, params(model="tree"))
        head = struct.pack("<3Bf2B", 2, 8, 8, 1.0, 255, 255) + struct.pack("<ff", 0.5, 0.5)
        body = head + b"\0\0\0\0" * 34
        claim = with_section(stream, Section.TREE, body)
        with pytest.raises(CorruptStreamError, match="parameters"):
            decode_chunk(claim)
        assert self.peak_of(claim) < 10**6
