"""What ratio, psnr and max_error promise, kept on every chunk there can be, or refused clearly."""

import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.faces import brain, smooth_volume
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream
from tinc_codec.bitstream.scalars import float32_bound
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, encode_chunk, encode_chunks
from tinc_codec.errors import TargetError
from tinc_codec.fit import plan as plan_module
from tinc_codec.metrics import Quality, measure
from tinc_codec.params import MAX_EFFORT, EncodingParams

MODELS = ("auto", "features", "tree", "lattice")
# With corrections, which a lattice has not, a bound on the error may be as small as any.
CORRECTED = ("auto", "features", "tree")
DTYPES = ("u1", "<u2", ">u4", "i1", ">i2", "<i4", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8")
SHAPES = (
    (2,),
    (3,),
    (1, 3),
    (1, 1, 2),
    (31,),
    (7, 9),
    (9, 11, 13),
    (17, 3, 8),
    (3, 9, 8, 7),
    (2, 2, 5, 6, 7),
)
TARGETS = ("ratio", "psnr", "max_error")
MAX_FLOAT64 = float(np.finfo("f8").max)

every_target = pytest.mark.parametrize("target", TARGETS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def short_fits(monkeypatch):
    """Fits of 12 steps: what is promised does not hang on a good fit."""
    monkeypatch.setattr(plan_module, "STEPS_BY_EFFORT", (12,) * (MAX_EFFORT + 1))


def asked(model: str = "auto", effort: int = 0, **target) -> EncodingParams:
    return EncodingParams(model=model, effort=effort, **target)


def header_of(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 32)


def quality_of(array: np.ndarray, found: np.ndarray, stream: bytes) -> Quality:
    """What a reader measures: over the finite voxels within the valid extent."""
    valid = header_of(stream).info.valid_slices
    return measure(array[valid], found[valid], np.isfinite(array[valid].astype("f8")))


def assert_stream_keeps(array: np.ndarray, stream: bytes, chosen: EncodingParams) -> Quality:
    """Check the promise and the header, and max_error on the path of GPUs too."""
    found = decode_chunk(stream)
    quality = quality_of(array, found, stream)
    if chosen.ratio is not None:
        assert len(stream) * chosen.ratio <= array.nbytes
    if chosen.psnr is not None:
        assert quality.psnr >= chosen.psnr
    if chosen.max_error is not None:
        assert quality.max_error <= chosen.max_error
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "resolve_device", lambda: "cpu:0")
            other = decode_chunk(stream)
        assert quality_of(array, other, stream).max_error <= chosen.max_error
    header = header_of(stream)
    assert header.psnr == float32_bound(quality.psnr, -math.inf)
    assert header.max_error == float32_bound(quality.max_error, math.inf)
    if array.dtype.kind == "f":
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(found), test(array))
    return quality


def assert_kept(array: np.ndarray, chosen: EncodingParams) -> tuple[bytes, Quality]:
    """Encode a chunk and check what was promised."""
    stream = encode_chunk(array, chosen)
    return stream, assert_stream_keeps(array, stream, chosen)


def span_of(array: np.ndarray) -> float:
    """The range of the finite values, or half of it where float64 cannot hold it."""
    finite = array[np.isfinite(array.astype("f8"))].astype("f8")
    if finite.size == 0:
        return 1.0
    return min(float(finite.max()) / 2 - float(finite.min()) / 2, MAX_FLOAT64 / 2) * 2


def noisy(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A smooth chunk with some noise, no two neighbours alike."""
    rng = np.random.default_rng(math.prod(shape))
    return (smooth_volume(shape, "<f8") + rng.uniform(0, 15, shape)).astype(dtype)


class TestEveryChunk:
    """Hypothesis looks for a chunk on which a promise is broken."""

    @pytest.mark.parametrize("model", ["auto", "features"])
    @settings(max_examples=100)
    @given(array=strategies.arrays(max_voxels=900), psnr=st.floats(0.01, 80))
    @example(array=np.array([1.0, 2.0]), psnr=300.0)
    def test_psnr(self, model, array, psnr):
        assert_kept(array, asked(model, psnr=psnr))

    @pytest.mark.parametrize("model", ["auto", "features"])
    @settings(max_examples=100)
    @given(
        array=strategies.arrays(max_voxels=900),
        share=st.sampled_from([0, 1e-9, 1e-7, 1e-5, 1e-3, 0.02, 0.3, 1, 7]),
    )
    def test_max_error(self, model, array, share):
        assert_kept(array, asked(model, max_error=min(share * span_of(array), MAX_FLOAT64)))

    @pytest.mark.usefixtures("short_fits")
    @settings(max_examples=25)
    @given(
        array=strategies.arrays(max_voxels=500),
        share=st.sampled_from([0, 1e-6, 1e-3, 0.02, 0.3, 7]),
    )
    def test_max_error_of_a_tree(self, array, share):
        assert_kept(array, asked("tree", max_error=min(share * span_of(array), MAX_FLOAT64)))

    @pytest.mark.usefixtures("short_fits")
    @settings(max_examples=25)
    @given(array=strategies.arrays(max_voxels=500), psnr=st.floats(0.01, 30))
    def test_psnr_of_a_tree(self, array, psnr):
        chosen = asked("tree", psnr=psnr)
        try:
            stream = encode_chunk(array, chosen)
        except TargetError as error:
            refusal = str(error)
        else:
            assert_stream_keeps(array, stream, chosen)
            return
        assert f"psnr={psnr:g} dB" in refusal
        assert 'model="features"' in refusal

    @settings(max_examples=60)
    @given(
        array=strategies.arrays(max_voxels=500),
        target=st.one_of(
            st.floats(0.01, 70).map(lambda psnr: {"psnr": psnr}),
            st.sampled_from([{"max_error": 0.5}, {"max_error": 9.0}, {"ratio": 3.0}]),
        ),
    )
    def test_a_lattice(self, array, target):
        chosen = asked("lattice", **target)
        try:
            stream = encode_chunk(array, chosen)
        except TargetError as error:
            refusal = str(error)
        else:
            assert_stream_keeps(array, stream, chosen)
            return
        # Spans that float64 does not hold have no lattice, whatever is asked.
        with np.errstate(over="ignore"):
            has_lattice = np.isfinite(np.ptp(array[np.isfinite(array)].astype(np.float64)))
        if "ratio" in target and has_lattice:
            assert "largest possible ratio" in refusal or "uncompressed" in refusal
        else:
            assert 'model="auto"' in refusal


class TestEveryShapeAndDtype:
    @every_target
    @every_dtype
    def test_small_odd_and_many_axes(self, dtype, target):
        for shape in SHAPES:
            array = noisy(shape, dtype)
            if target != "ratio":
                assert_kept(array, asked(**{target: 42.0 if target == "psnr" else 2.0}))
            elif array.nbytes > 400:
                assert_kept(array, asked(ratio=5.0))

    @pytest.mark.usefixtures("short_fits")
    @every_target
    @pytest.mark.parametrize("dtype", ["u1", ">i2", "<f4"])
    def test_trees(self, dtype, target):
        for shape in ((2,), (7, 9), (9, 11, 13), (2, 2, 5, 6, 7)):
            array = noisy(shape, dtype)
            if target != "ratio":
                assert_kept(array, asked("tree", **{target: 3.0 if target == "psnr" else 2.0}))
            elif array.nbytes > 400:
                assert_kept(array, asked("tree", ratio=5.0))

    @every_dtype
    @pytest.mark.parametrize("shape", [(1,), (3,), (1, 1, 1), (9, 8, 7), (1, 2, 3, 4, 5)])
    def test_constant_chunks_are_exact(self, shape, dtype):
        array = np.full(shape, 7, dtype)
        targets: list[dict[str, float]] = [{"psnr": 1e300}, {"max_error": 0.0}]
        # No stream is shorter than 25 bytes.
        targets += [{"ratio": 1.5}] * (array.nbytes >= 120)
        for target in targets:
            stream, quality = assert_kept(array, asked(**target))
            assert quality == (math.inf, 0.0)
            assert len(stream) < 60
            np.testing.assert_array_equal(decode_chunk(stream), array)

    @every_target
    @pytest.mark.parametrize("dtype", ["u1", ">i4", "<f2", "<f8"])
    def test_padded_edges(self, dtype, target):
        array = np.full((16, 12, 20), 77, dtype)
        array[:5, :, :7] = noisy((5, 12, 7), dtype)
        value = {"ratio": 16.0, "psnr": 50.0, "max_error": 1.0}[target]
        stream, _ = assert_kept(array, asked(**{target: value}))
        assert header_of(stream).info.valid_extent == (5, 12, 7)
        assert (decode_chunk(stream)[5:] == 77).all()

    @every_target
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
    @pytest.mark.usefixtures("short_fits")
    def test_voxels_that_are_not_finite_do_not_count(self, dtype, model, target):
        array = noisy((9, 16, 11), dtype)
        array[2:4, 3:9] = np.nan
        array[5, 5, 5], array[6, 6, 6] = np.inf, -np.inf
        value = {"ratio": 6.0, "psnr": 5.0, "max_error": 0.5}[target]
        assert_kept(array, asked(model, **{target: value}))

    @every_target
    def test_not_one_finite_voxel(self, target):
        array = np.full((5, 6, 7), np.nan, ">f4")
        array[2] = -np.inf
        value = {"ratio": 4.0, "psnr": 1e300, "max_error": 0.0}[target]
        _, quality = assert_kept(array, asked(**{target: value}))
        assert quality == (math.inf, 0.0)


def extremes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (7, 9, 8)
    waves = (np.sin(np.linspace(0, 9, 504)).reshape(shape) + 1) / 2
    half, double = np.finfo("f2"), np.finfo("f8")
    return {
        "all of uint32": np.rint(waves * (2**32 - 1)).astype(">u4"),
        "all of int32": np.rint(waves * (2**32 - 1) - 2**31).astype("<i4"),
        "ends of uint32": rng.choice([0, 2**32 - 1], shape).astype("<u4"),
        "all of float16": (waves * 1.9 - 0.95).astype("f2") * half.max,
        "subnormal float16": (rng.integers(0, 9, shape) * 2.0**-24).astype("<f2"),
        "all of float32": (waves * 2 - 1).astype("f4") * np.finfo("f4").max,
        "all of float64": (waves * 2 - 1) * double.max,
        "ends of float64": rng.choice([-double.max, double.max, 0.0, 1.0], shape),
        "subnormal float64": rng.integers(0, 5, shape) * double.smallest_subnormal,
        "far from zero": (1e6 + waves).astype("f4"),
        "one step": np.where(rng.random(shape) < 0.5, 1.0, np.nextafter(1.0, 2)),
    }


class TestExtremes:
    @pytest.mark.parametrize("name", extremes())
    @pytest.mark.parametrize("share", [0, 1e-12, 1e-6, 1e-3, 0.1, 0.6, 1e6])
    def test_max_error(self, name, share):
        array = extremes()[name]
        assert_kept(array, asked(max_error=min(share * span_of(array), MAX_FLOAT64)))

    @pytest.mark.parametrize("name", extremes())
    @pytest.mark.parametrize("psnr", [1e-300, 1.0, 40.0, 90.0])
    def test_psnr(self, name, psnr):
        assert_kept(extremes()[name], asked(psnr=psnr))

    @pytest.mark.parametrize("name", extremes())
    def test_ratio(self, name):
        array = extremes()[name]
        assert_kept(array, asked(ratio=array.nbytes / 200))

    @pytest.mark.parametrize("model", CORRECTED)
    @pytest.mark.usefixtures("short_fits")
    def test_largest_and_smallest_numbers_there_are(self, model):
        array = smooth_volume((9, 8, 7))
        for max_error in (MAX_FLOAT64, 5e-324):
            assert_kept(array, asked(model, max_error=max_error))
        assert_kept(array, asked(model, psnr=5e-324))
        with pytest.raises(TargetError, match=re.escape("psnr=1e+300 dB")):
            encode_chunk(array, asked(model, psnr=1e300))


class TestExactness:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i2", ">u4", "<i4"])
    @pytest.mark.usefixtures("short_fits")
    def test_less_than_one_is_exact_on_integers(self, dtype, model):
        array = noisy((9, 8, 11), dtype)
        streams = [encode_chunk(array, asked(model, max_error=e)) for e in (0, 0.4, 0.999)]
        assert streams[0] == streams[1] == streams[2]
        np.testing.assert_array_equal(decode_chunk(streams[0]), array)
        assert assert_stream_keeps(array, streams[0], asked(max_error=0)) == (math.inf, 0.0)

    @pytest.mark.parametrize("effort", [0, 4])
    def test_exact_integers_take_no_more_than_they_must(self, effort):
        array = brain(32)
        stream, _ = assert_kept(array, asked(max_error=0, effort=effort))
        assert len(stream) < 0.8 * array.nbytes

    def test_whole_numbers_bound_as_the_ones_up_to_the_next(self):
        array = brain(24)
        streams = [encode_chunk(array, asked(max_error=e)) for e in (3, 3.5, 3.999)]
        assert streams[0] == streams[1] == streams[2]
        assert quality_of(array, decode_chunk(streams[0]), streams[0]).max_error == 3

    @pytest.mark.parametrize("model", CORRECTED)
    @pytest.mark.parametrize("max_error", [0, 5e-324, 1e-30])
    @pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
    @pytest.mark.usefixtures("short_fits")
    def test_floats_can_be_exact_too(self, dtype, max_error, model):
        array = noisy((9, 8, 11), dtype)
        stream, quality = assert_kept(array, asked(model, max_error=max_error))
        assert quality.max_error == 0
        np.testing.assert_array_equal(decode_chunk(stream), array)

    def test_exact_floats_with_holes(self):
        array = noisy((9, 8, 11), "<f4")
        array[3, 2:5], array[4, 4] = np.nan, np.inf
        stream, _ = assert_kept(array, asked(max_error=0))
        np.testing.assert_array_equal(decode_chunk(stream), array)


class TestRefusals:
    @pytest.mark.parametrize("model", ["auto", "features"])
    @pytest.mark.parametrize("dtype", ["<u4", "<f4", ">f8"])
    def test_a_psnr_that_float32_cannot_reach(self, dtype, model):
        rng = np.random.default_rng(0)
        array = (rng.random((9, 10, 11)) * 4e9).astype(dtype)
        with pytest.raises(TargetError, match=r"psnr=200 dB.*lossless") as caught:
            encode_chunk(array, asked(model, psnr=200))
        # What it says is possible is possible.
        (possible,) = map(float, re.findall(r"([\d.]+) dB", str(caught.value))[1:])
        assert 100 < possible < 200
        assert_kept(array, asked(model, psnr=possible - 0.01))

    @pytest.mark.parametrize("model", MODELS)
    def test_a_ratio_that_no_chunk_of_this_size_has(self, model):
        array = np.arange(3000, dtype="<u2").reshape(10, 15, 20)
        with pytest.raises(TargetError, match="largest possible ratio") as caught:
            encode_chunk(array, asked(model, ratio=5000))
        (possible,) = map(float, re.findall(r"ratio for it is ([\d.]+);", str(caught.value)))
        assert_kept(array, asked(model, ratio=possible))
        with pytest.raises(TargetError):
            encode_chunk(array, asked(model, ratio=possible + 2))

    @pytest.mark.usefixtures("short_fits")
    def test_a_psnr_that_a_tree_does_not_reach(self):
        rng = np.random.default_rng(0)
        with pytest.raises(TargetError, match=r'psnr=60 dB.*model="features"'):
            encode_chunk(rng.random((8, 8, 8)), asked("tree", psnr=60))

    def test_one_promise_that_cannot_be_kept_fails_the_call(self):
        chunks = [smooth_volume((8, 8, 8)), np.random.default_rng(0).random((8, 8, 8))]
        with pytest.raises(TargetError, match="psnr=180"):
            encode_chunks(chunks, asked(psnr=180))


def float_field() -> np.ndarray:
    """A field as simulations write it: smooth, float32, finer than any target."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (24, 30, 27)), indexing="ij")
    field = sum(
        np.sin(k @ np.stack([z.ravel(), y.ravel(), x.ravel()]) + phase) / np.linalg.norm(k)
        for k, phase in zip(rng.normal(0, 8, (12, 3)), rng.uniform(0, 6, 12), strict=True)
    )
    return (280 + 15 * field.reshape(z.shape)).astype("<f4")


class TestBytes:
    """The fewest bytes that keep a promise: never more for a looser one, none wasted."""

    @pytest.mark.parametrize("effort", [0, 4])
    @pytest.mark.parametrize("psnr", [25.0, 33.3, 40.0, 50.0])
    def test_psnr_is_hardly_exceeded(self, psnr, effort):
        for array in (brain(48), float_field()):
            _, quality = assert_kept(array, asked(psnr=psnr, effort=effort))
            assert quality.psnr <= psnr + 0.3

    @pytest.mark.parametrize("effort", [0, 4])
    @pytest.mark.parametrize("make", [lambda: brain(32), float_field], ids=["brain", "field"])
    def test_looser_promises_take_fewer_bytes(self, make, effort):
        array = make()
        promises = {
            "psnr": (55.0, 50.0, 45.0, 40.0, 35.0, 30.0, 25.0, 20.0),
            "max_error": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
            "ratio": (4.0, 8.0, 16.0, 32.0, 64.0),
        }
        for target, values in promises.items():
            found = [
                assert_kept(array, asked(effort=effort, **{target: value})) for value in values
            ]
            sizes = [len(stream) for stream, _ in found]
            assert sizes == sorted(set(sizes), reverse=True), target
            if target == "ratio":
                reached = [quality.psnr for _, quality in found]
                assert reached == sorted(reached, reverse=True)

    def test_corrections_pay(self):
        """With a bound on the error, the features alone would have to be much finer."""
        array = brain(32)
        stream, quality = assert_kept(array, asked("features", max_error=10))
        assert Section.CORRECTIONS in header_of(stream).sections
        assert quality.max_error == 10
        alone = next(
            size
            for size, worst in (
                (len(stream), quality_of(array, decode_chunk(stream), stream).max_error)
                for stream in (
                    encode_chunk(array, asked("features", psnr=p)) for p in range(35, 70)
                )
            )
            if worst <= 10
        )
        assert len(stream) < 0.95 * alone

    @pytest.mark.parametrize("effort", [0, 4])
    def test_nothing_is_spent_on_what_a_coarse_promise_does_not_need(self, effort):
        for array in (brain(32), float_field()):
            for target in ({"psnr": 0.01}, {"max_error": 2 * span_of(array)}):
                stream, _ = assert_kept(array, asked(effort=effort, **target))
                assert len(stream) < 100

    def test_exact_floats_spend_nothing_on_features(self):
        """Where every voxel is stored as it is, features before it are waste."""
        rng = np.random.default_rng(0)
        array = rng.random((12, 12, 12)).astype("f4")
        stream, _ = assert_kept(array, asked(max_error=0))
        assert len(stream) < 1.1 * array.nbytes
