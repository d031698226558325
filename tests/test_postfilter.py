"""Post-filters: exact bytes, sections that lie, the same voxels from every path, and fits."""

import contextlib
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import postfilter_reference, strategies
from tests.faces import brain, smooth_volume
from tests.faces import psnr as psnr_of
from tests.filters import CONDITIONING, some_section
from tests.memory import AllocationMeter
from tests.meter import MemoryMeter
from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.codec import decode_chunk, decode_level, decode_region, encode_chunk
from tinc_codec.entropy.weights import MAX_MAGNITUDE, SymbolModel, encode_symbols
from tinc_codec.errors import CorruptStreamError, FormatError, TruncatedStreamError
from tinc_codec.fit import filtered as filtered_fits
from tinc_codec.metrics import max_error
from tinc_codec.model import torch_filtering, torch_render
from tinc_codec.model.filtering import apply_postfilter
from tinc_codec.model.postfilter import (
    MAX_GAIN_CODE,
    MAX_LAYERS,
    MAX_WIDTH,
    OFFSETS,
    REACH,
    CodedTensor,
    Conditioning,
    PostFilter,
    fixed_bytes,
    parameter_count,
    read_postfilter,
    tensors_of,
    write_postfilter,
)
from tinc_codec.model.torch_filtering import filter_on_device
from tinc_codec.params import EncodingParams
from tinc_codec.quantise.scalar import q_step

DOCUMENT = Path(__file__).parents[1] / "docs" / "format.md"
TOLERANCE = 1e-5

# Written by hand from docs/format.md §13.1: one hidden layer of one output, of which only the
# output's bias, 1/2, is not 0.
SMALL = bytes.fromhex(
    "01 01"  # one hidden layer of one output
    "c001 80 20"  # mean activity 2^-3, centre 128/255, gain 4
    "10 00 00 00"  # its weights: step 1/2, all zero
    "10 00 00 00"  # its bias
    "10 00 00 00"  # the output's weights
    "10 40 00 03"  # its bias: step 1/2, geometric of mean magnitude 1, magnitude 3
    "008a52b7"  # the symbol 1
)

widths = st.lists(st.integers(1, 12) | st.just(MAX_WIDTH), min_size=1, max_size=MAX_LAYERS).map(
    tuple
)
conditionings = st.builds(
    Conditioning, st.integers(0, 2047), st.integers(0, 255), st.integers(0, MAX_GAIN_CODE)
)


def random_tensors(sizes: tuple[int, ...], seed: int, largest: int = 20) -> list[CodedTensor]:
    """Tensors with random symbols, steps and distributions."""
    rng = np.random.default_rng(seed)
    tensors = []
    for part in tensors_of(sizes):
        most = int(rng.integers(0, largest, endpoint=True))
        symbols = rng.integers(-most, most, part.stop - part.start, np.int32, endpoint=True)
        family, scale, zero = (int(rng.integers(*limits)) for limits in ((2,), (40, 110), (128,)))
        step = int(rng.integers(0, 256))
        tensors.append(CodedTensor(step, SymbolModel(family, scale, zero, most), symbols))
    return tensors


def some_filter(sizes: tuple[int, ...] = (8, 8), seed: int = 0, **options) -> PostFilter:
    return read_postfilter(some_section(sizes, seed, **options))


def some_values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """t of a chunk: smooth, with an edge, some noise, and a little of it beyond [0, 1]."""
    rng = np.random.default_rng(seed)
    values = smooth_volume(shape) / 100 + rng.normal(0, 0.03, shape)
    values[..., shape[-1] // 2 :] -= 0.2
    return values.astype(np.float32)


def header_of(stream: bytes) -> Header:
    return read_stream(stream, max_decoded_bytes=1 << 30)


def is_filtered(stream: bytes) -> bool:
    return Section.POSTFILTER in header_of(stream).sections


def with_filter(stream: bytes, section: bytes | None = None) -> bytes:
    """The stream with a made-up post-filter, or another one's section."""
    header = header_of(stream)
    body = some_section((8, 8)) if section is None else section
    sections = {**header.sections, int(Section.POSTFILTER): body}
    return write_stream(dataclasses.replace(header, sections=sections))


def features_of(array: np.ndarray) -> bytes:
    return encode_chunk(array, EncodingParams(ratio=4, effort=0, model="features"))


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_array_equal(
        *(np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}") for a in (found, expected))
    )


class TestSection:
    @settings(max_examples=60)
    @given(widths, conditionings, strategies.seeds)
    def test_sections_come_back(self, sizes, conditioning, seed):
        tensors = random_tensors(sizes, seed)
        body = write_postfilter(sizes, conditioning, tensors)
        found = read_postfilter(body)
        assert found.widths == sizes
        assert found.conditioning == conditioning
        assert found.parameters.dtype == np.float32
        assert found.parameters.size == parameter_count(sizes)
        for part, tensor in zip(tensors_of(sizes), tensors, strict=True):
            expected = tensor.symbols.astype(np.float32) * np.float32(q_step(tensor.step_code))
            np.testing.assert_array_equal(found.parameters[part], expected)

    @settings(max_examples=40)
    @given(widths, conditionings, strategies.seeds)
    def test_the_second_reader_agrees(self, sizes, conditioning, seed):
        tensors = random_tensors(sizes, seed)
        found = postfilter_reference.read(write_postfilter(sizes, conditioning, tensors))
        assert tuple(found.widths) == sizes
        assert found.symbols == [tensor.symbols.tolist() for tensor in tensors]
        assert [code.step_code for code in found.codes] == [t.step_code for t in tensors]
        constants = [found.mean, found.centre, found.gain]
        np.testing.assert_allclose(conditioning.constants, constants, rtol=1e-7)

    @given(widths, strategies.seeds, st.sampled_from([0, 20, 2000, (1 << 14) - 1]))
    def test_its_size_is_bounded_beforehand(self, sizes, seed, largest):
        tensors = random_tensors(sizes, seed, largest)
        body = write_postfilter(sizes, CONDITIONING, tensors)
        coded = encode_symbols([t.symbols for t in tensors], [t.model for t in tensors])
        assert body.endswith(coded)
        least = fixed_bytes(sizes) - len(tensors)
        assert least <= len(body) - len(coded) <= fixed_bytes(sizes)
        assert largest or len(body) == least

    def test_exact_bytes(self):
        zero = SymbolModel(0, 0, 0, 0)
        tensors = [CodedTensor(16, zero, np.zeros(n, np.int32)) for n in (19, 1, 1)]
        last = CodedTensor(16, SymbolModel(0, 64, 0, 3), np.array([1], np.int32))
        conditioning = Conditioning(448, 128, 32)
        assert write_postfilter((1,), conditioning, [*tensors, last]).hex(" ") == SMALL.hex(" ")
        assert postfilter_reference.read(SMALL).symbols == [[0] * 19, [0], [0], [1]]
        found = read_postfilter(SMALL)
        assert found.parameters.tolist() == [0.0] * 21 + [0.5]
        np.testing.assert_array_equal(
            found.conditioning.constants, np.array([0.125, 128 / 255, 4], np.float32)
        )

    def test_pairs_are_those_of_the_document(self):
        assert OFFSETS.tolist() == [list(offset) for offset in postfilter_reference.PAIRS]
        text = DOCUMENT.read_text()
        for k, (z, y, x) in enumerate(OFFSETS.tolist()):
            assert f"| {k} | ({z}, {y}, {x}) |".replace("-", "−") in text


class TestRejections:
    @pytest.fixture(scope="class")
    @classmethod
    def body(cls) -> bytes:
        return write_postfilter((5, 3), CONDITIONING, random_tensors((5, 3), 4))

    def start_of_code(self, body: bytes) -> int:
        tensors = random_tensors((5, 3), 4)
        return len(body) - len(body[3 + 4 + 4 * len(tensors) :])

    def test_every_truncation(self, body):
        start = self.start_of_code(body)
        for length in range(start):
            with pytest.raises(TruncatedStreamError):
                read_postfilter(body[:length])
            with pytest.raises(ValueError, match="truncated"):
                postfilter_reference.read(body[:length])
        # A code that ends early reads on as zeros: wrong numbers, but as many.
        for length in range(start, len(body)):
            self.check_finite_or_refused(body[:length])

    def test_every_bit_flipped(self, body):
        for position in range(len(body)):
            for bit in range(8):
                damaged = bytearray(body)
                damaged[position] ^= 1 << bit
                self.check_finite_or_refused(bytes(damaged))

    @settings(max_examples=200)
    @given(st.binary(max_size=120), st.booleans(), widths)
    def test_random_bytes(self, data, with_start, sizes):
        self.check_finite_or_refused(bytes([len(sizes), *sizes]) * with_start + data)

    def check_finite_or_refused(self, body: bytes) -> None:
        """Both readers accept, and then filter to finite values, or both refuse."""
        try:
            expected = postfilter_reference.read(body)
        except ValueError:
            with pytest.raises(FormatError):
                read_postfilter(body)
            return
        found = read_postfilter(body)
        assert found.widths == tuple(expected.widths)
        values = some_values((1, 3, 4, 5))
        assert np.isfinite(apply_postfilter(values, found, 1)).all()

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, b"\x00", "0 hidden layers"),
            (0, b"\x04", "4 hidden layers"),
            (0, b"\xff", "255 hidden layers"),
            (1, b"\x00", "widths"),
            (2, b"\x41", "widths"),
            (2, b"\xff", "widths"),
            (3, (2048).to_bytes(2, "little"), "activity 2048"),
            (3, b"\xff\xff", "activity 65535"),
            (6, b"\x81", "gain 129"),
            (6, b"\xff", "gain 255"),
            (10, write_varint(MAX_MAGNITUDE + 1), "magnitude 32769"),
            (10, write_varint(1 << 62), "magnitude"),
        ],
    )
    def test_what_the_document_excludes(self, body, position, value, message):
        length = 1 if position == 10 else len(value)
        changed = body[:position] + value + body[position + length :]
        with pytest.raises(CorruptStreamError, match=message):
            read_postfilter(changed)
        with pytest.raises(ValueError, match=r"hidden|width|activity|magnitude"):
            postfilter_reference.read(changed)

    @pytest.mark.parametrize("tail", [b"\x00", b"TINC" * 3])
    def test_trailing_bytes(self, body, tail):
        with pytest.raises(CorruptStreamError):
            read_postfilter(body + tail)
        with pytest.raises(CorruptStreamError):
            read_postfilter(some_section((2,), largest=0) + tail)

    def test_the_longest_varint_is_refused(self, body):
        with pytest.raises(FormatError):
            read_postfilter(body[:10] + b"\xff" * 12 + body[11:])

    def test_absurd_counts_are_refused_without_allocating(self, body):
        read_postfilter(body)
        many = (b"\xff\xff\xff" + write_varint(MAX_MAGNITUDE)) * 8
        with AllocationMeter() as meter:
            for start in (b"\xff" + b"\xff" * 255, b"\x03\x41\x41\x41", b"\x03\x40\x40\x40"):
                with pytest.raises(FormatError):
                    read_postfilter(start + b"\xff" * 40)
            with contextlib.suppress(FormatError):
                read_postfilter(b"\x03\x40\x40\x40\x00\x00\x00\x00" + many + b"\xff" * 40)
        assert meter.peak_bytes < 8 << 20

    @pytest.mark.parametrize("sign", [-1, 1])
    @pytest.mark.parametrize("conditioning", [Conditioning(0, 0, 0), Conditioning(2047, 255, 128)])
    def test_the_largest_network_stays_finite(self, sign, conditioning):
        sizes = (MAX_WIDTH,) * MAX_LAYERS
        model = SymbolModel(0, 255, 0, MAX_MAGNITUDE)
        tensors = [
            CodedTensor(0, model, np.full(part.stop - part.start, MAX_MAGNITUDE, np.int32))
            for part in tensors_of(sizes)
        ]
        tensors[-2].symbols[:] *= sign
        found = read_postfilter(write_postfilter(sizes, conditioning, tensors))
        spikes = np.zeros((1, 5, 5, 5), np.float32)
        spikes[0, 2, 2, 2] = 1
        for values in (spikes, 1 - spikes, np.zeros_like(spikes), np.full_like(spikes, 1e30)):
            filtered = apply_postfilter(values, found, 1)
            assert np.isfinite(filtered).all()
            assert np.isfinite(postfilter_on_torch(values, found)).all()

    def test_a_section_that_lies_is_found_when_a_chunk_is_decoded(self):
        stream = features_of(smooth_volume((8, 9, 10)))
        lie = with_filter(stream, b"\x04" + some_section((8,))[1:])
        with pytest.raises(CorruptStreamError, match="hidden layers"):
            decode_chunk(lie)
        with pytest.raises(CorruptStreamError, match="hidden layers"):
            decode_region(lie, (slice(0, 1),) * 3)


def postfilter_on_torch(values: np.ndarray, postfilter: PostFilter) -> np.ndarray:
    tensor = torch.from_numpy(values.copy())
    filter_on_device(tensor, postfilter)
    return tensor.numpy()


SHAPES = [(1, 9, 10, 11), (3, 5, 1, 7), (1, 1, 2, 30), (2, 2, 1, 1), (1, 1, 1, 1), (1, 2, 3, 600)]


class TestKernel:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("sizes", [(1,), (8, 8), (5, 7, 9), (64,)], ids=str)
    def test_it_does_what_the_document_says(self, shape, sizes):
        body = some_section(sizes, 5)
        values = some_values(shape)
        expected = postfilter_reference.apply(postfilter_reference.read(body), values)
        assert np.abs(expected - values.clip(0, 1)).max() > 10 * TOLERANCE
        for found in (
            apply_postfilter(values, read_postfilter(body), 1),
            postfilter_on_torch(values, read_postfilter(body)),
        ):
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= TOLERANCE

    @settings(max_examples=60)
    @given(st.data())
    def test_any_box_has_the_bits_of_the_whole(self, data):
        shape = tuple(
            data.draw(st.sampled_from([1, 2, 3, 5, 16, 33]), label=axis) for axis in "bzyx"
        )
        values = some_values(shape, data.draw(strategies.seeds))
        postfilter = some_filter(data.draw(widths), data.draw(strategies.seeds))
        whole = apply_postfilter(values, postfilter, 1)
        box = []
        for n in shape[1:]:
            start = data.draw(st.integers(0, n - 1))
            box.append((start, data.draw(st.integers(start + 1, n))))
        # As readers of a part do: what lies further away than the reach is not there.
        near = [
            (max(0, a - REACH), min(n, b + REACH)) for (a, b), n in zip(box, shape[1:], strict=True)
        ]
        inner = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, near, strict=True))
        part = values[(slice(None), *(slice(a, b) for a, b in near))]
        expected = whole[(slice(None), *(slice(a, b) for a, b in box))]
        assert_same_bits(apply_postfilter(part, postfilter, 1, inner), expected)

    def test_threads_change_nothing(self):
        values = some_values((2, 70, 65, 67))
        postfilter = some_filter((4,))
        assert_same_bits(
            apply_postfilter(values, postfilter, 3), apply_postfilter(values, postfilter, 1)
        )

    def test_volumes_do_not_see_each_other(self):
        values = some_values((3, 6, 7, 8))
        postfilter = some_filter()
        whole = apply_postfilter(values, postfilter, 1)
        for number in range(3):
            assert_same_bits(
                apply_postfilter(values[number : number + 1], postfilter, 1),
                whole[number : number + 1],
            )

    def test_a_voxel_reaches_two_voxels_far(self):
        values = some_values((1, 9, 9, 9))
        changed = values.copy()
        changed[0, 4, 4, 4] += 0.1
        postfilter = some_filter((16,))
        moved = apply_postfilter(changed, postfilter, 1) != apply_postfilter(values, postfilter, 1)
        places = np.argwhere(moved[0])
        assert np.abs(places - 4).max() == REACH
        assert set(map(tuple, OFFSETS)) <= set(map(tuple, places - 4))

    def test_what_is_beyond_the_range_is_clipped_first(self):
        values = some_values((1, 6, 7, 8)) * 3 - 1
        assert values.min() < 0
        assert values.max() > 1
        postfilter = some_filter()
        assert_same_bits(
            apply_postfilter(values, postfilter, 1),
            apply_postfilter(values.clip(0, 1), postfilter, 1),
        )

    def test_its_answer_is_not_clipped(self):
        filtered = apply_postfilter(some_values((1, 6, 7, 8)), some_filter(answer=30.0), 1)
        assert filtered.min() < 0
        assert filtered.max() > 1


class TestTorch:
    @pytest.mark.parametrize("voxels", [1, 70, 200])
    def test_slabs_do_not_matter(self, monkeypatch, voxels):
        values = some_values((2, 11, 9, 7))
        postfilter = some_filter()
        whole = postfilter_on_torch(values, postfilter)
        monkeypatch.setattr(torch_filtering, "_SLAB_VOXELS", voxels)
        found = postfilter_on_torch(values, postfilter)
        # Matrix products of other sizes may be summed up in another order.
        assert np.abs(found - whole).max() <= TOLERANCE
        assert np.abs(found - apply_postfilter(values, postfilter, 1)).max() <= TOLERANCE

    @pytest.mark.parametrize("sizes", [(1,), (8, 8), (64,), (12, 64, 3), (64, 64, 64)], ids=str)
    @pytest.mark.parametrize("shape", [(1, 40, 33, 24), (2, 3, 64, 64), (1, 1, 1, 9000)], ids=str)
    @pytest.mark.parametrize("slab_voxels", [1 << 19, 5000, 1000])
    def test_it_holds_no_more_than_estimated(self, monkeypatch, sizes, shape, slab_voxels):
        monkeypatch.setattr(torch_filtering, "_SLAB_VOXELS", slab_voxels)
        values = torch.from_numpy(some_values(shape))
        with MemoryMeter() as meter:
            filter_on_device(values, some_filter(sizes))
        volume = math.prod(n + 2 * REACH for n in shape[1:])
        allowed = torch_filtering.slab_bytes(volume, max(sizes)) + torch_render._ALLOCATION_BYTES
        assert meter.peak_bytes <= allowed

    @pytest.mark.parametrize("shape", [(40, 33, 24), (2, 16, 20, 24), (4096,), (70, 80)], ids=str)
    @pytest.mark.parametrize("sizes", [(8, 8), (64, 64)], ids=str)
    def test_a_launch_holds_no_more_than_estimated(self, shape, sizes):
        stream = with_filter(features_of(smooth_volume(shape)), some_section(sizes))
        header = header_of(stream)
        for count in (1, 3):
            models = [torch_render._model_of(header) for _ in range(count)]
            key = torch_render._key_of(header, models[0])
            assert key.filter_width == sizes[0]
            with MemoryMeter() as meter:
                torch_render._evaluate(models, "cpu:0")
            assert meter.peak_bytes <= torch_render.launch_bytes(key, count)

    @pytest.mark.parametrize("shape", [(20, 21, 22), (3, 9, 10, 11), (50, 60), (300,)], ids=str)
    @pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
    def test_both_paths_decode_the_same(self, monkeypatch, shape, dtype):
        array = smooth_volume(shape, dtype)
        stream = with_filter(features_of(array))
        compiled = decode_chunk(stream)
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
        found = decode_chunk(stream)
        assert found.dtype == compiled.dtype
        difference = np.abs(found.astype("f8") - compiled.astype("f8")).max()
        assert difference <= TOLERANCE * np.ptp(array.astype("f8")) + (np.dtype(dtype).kind == "u")


class TestStream:
    def test_it_needs_a_model(self):
        stream = with_filter(features_of(smooth_volume((8, 9, 10))))
        header = header_of(stream)
        assert header.version == (1, 2)
        alone = {Section.POSTFILTER: header.sections[Section.POSTFILTER]}
        with pytest.raises(ValueError, match="post-filter needs a model"):
            write_stream(dataclasses.replace(header, sections=alone))

    def test_another_filter_changes_voxels_and_nothing_else(self):
        array = smooth_volume((9, 10, 11))
        array[3:5, 2] = np.nan
        array[:, :, 8:] = 7
        plain = features_of(array)
        stream = with_filter(plain)
        before, after = decode_chunk(plain), decode_chunk(stream)
        np.testing.assert_array_equal(np.isnan(after), np.isnan(before))
        assert (after[:, :, 8:] == 7).all()
        assert np.nanmin(after) >= np.nanmin(array)
        assert np.nanmax(after) <= np.nanmax(array)
        assert (after != before)[:, :, :8].mean() > 0.5

    @pytest.mark.parametrize("level", [1, 2, 3])
    def test_levels_do_not_look_at_it(self, level):
        plain = features_of(smooth_volume((18, 19, 20)))
        assert_same_bits(decode_level(with_filter(plain), level), decode_level(plain, level))

    def test_the_padding_is_no_neighbour(self):
        array = smooth_volume((9, 10, 11))
        padded = np.pad(array, (0, 5), constant_values=-100)
        found = decode_chunk(with_filter(features_of(padded)))[:9, :10, :11]
        header = header_of(features_of(padded))
        cut = dataclasses.replace(
            header, info=dataclasses.replace(
                header.info, shape=(9, 10, 11), valid_extent=(9, 10, 11), pad_value=None
            ),
        )  # fmt: skip
        assert_same_bits(found, decode_chunk(with_filter(write_stream(cut))))


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    """Anatomy, 48^3, which filters mend."""
    return brain(48)


RATIO = 16
FILTERED_EFFORT = 3


@pytest.fixture(scope="module")
def filtered(textured) -> bytes:
    return encode_chunk(textured, EncodingParams(ratio=RATIO, effort=FILTERED_EFFORT))


class TestFit:
    def test_it_pays_within_the_ratio(self, textured, filtered, monkeypatch):
        assert is_filtered(filtered)
        assert len(filtered) <= textured.nbytes / RATIO
        monkeypatch.setattr(filtered_fits, "plan_of", lambda *_: None)
        plain = encode_chunk(textured, EncodingParams(ratio=RATIO, effort=FILTERED_EFFORT))
        assert not is_filtered(plain)
        assert header_of(filtered).psnr > header_of(plain).psnr + 0.1

    def test_the_header_says_what_is_decoded(self, textured, filtered):
        decoded, header = decode_chunk(filtered), header_of(filtered)
        assert header.psnr <= psnr_of(textured, decoded) <= header.psnr + 1e-4
        assert header.max_error == max_error(textured, decoded)

    def test_parts_have_the_bits_of_the_whole(self, filtered):
        whole = decode_chunk(filtered)
        for box in itertools.product([slice(0, 1), slice(5, 20), slice(47, 48)], repeat=3):
            assert_same_bits(decode_region(filtered, box), whole[box])

    def test_other_devices_agree(self, filtered, textured, monkeypatch):
        compiled = decode_chunk(filtered)
        monkeypatch.setattr(config, "resolve_device", lambda: "cpu:0")
        assert np.abs(decode_chunk(filtered).astype("i4") - compiled).max() <= 1

    def test_the_same_bytes_every_time(self, textured, filtered):
        for threads in (1, 2):
            with config.set(threads=threads):
                again = encode_chunk(textured, EncodingParams(ratio=RATIO, effort=FILTERED_EFFORT))
            assert again == filtered

    @pytest.mark.parametrize("devices", [("cpu", "cpu:0"), ("cpu:0", "cpu")])
    @pytest.mark.parametrize("psnr", [30.0, 34.0, 38.0])
    def test_psnr_is_kept_on_every_device(self, textured, monkeypatch, psnr, devices):
        monkeypatch.setattr(config, "resolve_device", lambda: devices[0])
        stream = encode_chunk(textured, EncodingParams(psnr=psnr, effort=FILTERED_EFFORT))
        for device in devices:
            monkeypatch.setattr(config, "resolve_device", lambda device=device: device)
            assert psnr <= psnr_of(textured, decode_chunk(stream)) < psnr + 1

    @pytest.mark.parametrize("model", ["auto", "features"])
    def test_a_largest_error_has_no_filter(self, textured, model):
        for bound in (2, 20):
            params = EncodingParams(max_error=bound, effort=FILTERED_EFFORT, model=model)
            stream = encode_chunk(textured, params)
            assert not is_filtered(stream)
            assert max_error(textured, decode_chunk(stream)) <= bound

    def test_effort_0_trains_nothing(self, textured):
        assert not is_filtered(encode_chunk(textured, EncodingParams(ratio=RATIO, effort=0)))

    @pytest.mark.parametrize(
        "array",
        [
            np.full((16, 16, 16), 7, "f4"),
            np.full((16, 16, 16), np.nan, "f4"),
            smooth_volume((3, 1, 2)),
            smooth_volume((2, 2, 2), "u1"),
            np.eye(32, dtype="u1"),
            np.where(np.arange(40**3).reshape(40, 40, 40) == 777, 1, 0).astype("f4"),
            smooth_volume((100, 120)),
            smooth_volume((4000,), ">i2"),
            np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype("f2"),
        ],
        ids=[
            "constant", "no finite voxel", "tiny", "eight voxels", "plane", "one voxel",
            "wide plane", "line", "noise",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("target", [{"psnr": 25.0}, {"ratio": 2.5}, {"max_error": 1.0}])
    def test_odd_chunks(self, array, target):
        if "ratio" in target and array.nbytes < 500:
            pytest.skip("the header alone is longer")
        stream = encode_chunk(array, EncodingParams(effort=FILTERED_EFFORT, **target))
        found = decode_chunk(stream)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        if "ratio" in target:
            assert len(stream) <= array.nbytes / 2.5
        elif "psnr" in target:
            assert header_of(stream).psnr >= 25
        else:
            assert not is_filtered(stream)
            assert header_of(stream).max_error <= 1

    @pytest.mark.parametrize("dtype", ["u1", "f4"])
    @pytest.mark.parametrize("kind", ["batch", "plane", "NaN", "padded"])
    def test_filters_of_other_chunks(self, textured, kind, dtype):
        array = textured.astype(dtype)
        if kind == "batch":
            array = array.reshape(2, 24, 48, 48)
        elif kind == "plane":
            array = brain(60).astype(dtype).reshape(60 * 5, -1)
        elif kind == "padded":
            array = np.pad(array, (0, 7))
        elif dtype == "f4":
            array[10:20, 5:30, 8:40] = np.nan
        ratio = (24 if kind == "padded" else 16) * array.itemsize
        stream = encode_chunk(array, EncodingParams(ratio=ratio, effort=FILTERED_EFFORT))
        assert is_filtered(stream)
        assert len(stream) <= array.nbytes / ratio
        whole = decode_chunk(stream)
        np.testing.assert_array_equal(np.isnan(whole.astype("f8")), np.isnan(array.astype("f8")))
        box = tuple(slice(n // 3, n // 3 + 3) for n in array.shape)
        assert_same_bits(decode_region(stream, box), whole[box])
