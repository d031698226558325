"""The features section: buckets, contexts, tables, bands, exact bytes, and sections that lie."""

import hashlib
import itertools
import math
import re
import struct
from pathlib import Path

import constriction
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import features_reference
from tests.memory import AllocationMeter
from tests.strategies import seeds
from tests.tree_reference import RangeDecoder
from tinc_codec.bitstream.header import Header, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.bitstream.varint import MAX_VARINT, write_varint
from tinc_codec.codec import decode_chunk
from tinc_codec.entropy.bands import LowPass, choose_low_pass, decode_bands, encode_bands
from tinc_codec.entropy.buckets import (
    BUCKET_BASE,
    BUCKET_BITS,
    MAX_MAGNITUDE,
    N_BUCKETS,
    REPRESENTED,
)
from tinc_codec.entropy.contexts import context_of
from tinc_codec.entropy.feature_tables import (
    LEVEL_CLASSES,
    N_CONTEXTS,
    N_WEIGHTS,
    PHASE_ORDER,
    bucket_model,
    flag_model,
    load_tables,
)
from tinc_codec.entropy.pyramid import (
    BLOCKED_SIZE,
    MASKS,
    Level,
    low_pass_slices,
    segments_of,
)
from tinc_codec.errors import CorruptStreamError, FormatError, TruncatedStreamError
from tinc_codec.fit.rdo import choose_symbols
from tinc_codec.model import torch_wavelet, wavelet
from tinc_codec.model.coefficients import coefficients_of
from tinc_codec.model.features import (
    MAX_SHIFT,
    MAX_STEP_CODE,
    Features,
    feature_levels,
    feature_step,
    no_shifts,
    read_features,
    step_code,
    write_features,
)
from tinc_codec.volume.chunk import analyse

DOCUMENT = Path(__file__).parents[1] / "docs" / "format.md"
# docs/format.md §9.5
PRECISION = 2.0**-18
# One band of each has `BLOCKED_SIZE` coefficients or a few more.
BLOCKED_GRIDS = [(1, 128, 128), (33, 34, 32), (1, 1, 8192), (3, 75, 77)]


@st.composite
def grids(draw: st.DrawFn, max_size: int = 40) -> tuple[int, int, int]:
    """Grids of small, odd and size-1 axes."""
    sizes = [draw(st.integers(1, 12)), draw(st.integers(1, 20)), draw(st.integers(1, max_size))]
    z, y, x = draw(st.permutations(sizes))
    return z, y, x


def some_symbols(rng: np.random.Generator, kind: str, volumes: int, grid) -> np.ndarray:
    """Symbols as int32 [volume, z, y, x]."""
    shape = (volumes, *grid)
    if kind == "zero":
        return np.zeros(shape, np.int32)
    if kind == "sparse":
        return (rng.integers(-2, 3, shape) * (rng.random(shape) < 0.02)).astype(np.int32)
    if kind == "small":
        return np.rint(rng.laplace(0, 1.5, shape)).astype(np.int32)
    if kind == "wide":
        signs = rng.choice([-1, 1], shape)
        return (signs * np.floor(2 ** rng.uniform(0, 24, shape))).astype(np.int32)
    return rng.choice([-MAX_MAGNITUDE, 0, MAX_MAGNITUDE], shape).astype(np.int32)


KINDS = ("zero", "sparse", "small", "wide", "extreme")


def low_passes_of(symbols: np.ndarray, levels: tuple[Level, ...]) -> list[LowPass]:
    """Ways to code the corners that keep their magnitudes within what there is a code for."""
    corner = low_pass_slices(levels, symbols.shape[1:])
    parts = [volume[corner] for volume in symbols]
    return [
        choose_low_pass(part) if np.abs(part).max() < MAX_MAGNITUDE // 2 else LowPass(70, 0)
        for part in parts
    ]


def some_shifts(rng: np.random.Generator, levels: tuple[Level, ...], most: int = MAX_SHIFT):
    return tuple(
        tuple(rng.integers(-most, most, len(level.masks), endpoint=True).tolist())
        for level in levels
    )


def some_features(
    seed: int, grid: tuple[int, int, int], volumes: int = 1, kind: str = "small", plain=False
) -> tuple[Features, list[LowPass]]:
    rng = np.random.default_rng(seed)
    levels = feature_levels(grid)
    symbols = some_symbols(rng, kind, volumes, grid)
    centroids = tuple((0, 0) for _ in levels)
    shifts = no_shifts(levels)
    if not plain:
        centroids = tuple(tuple(rng.integers(-128, 128, 2).tolist()) for _ in levels)
        shifts = some_shifts(rng, levels, int(rng.choice([0, 3, MAX_SHIFT])))
    code = int(rng.integers(0, MAX_STEP_CODE, endpoint=True))
    return Features(symbols, code, centroids, shifts), low_passes_of(symbols, levels)


def assert_same(found: Features, expected: Features) -> None:
    np.testing.assert_array_equal(found.symbols, expected.symbols)
    assert found.symbols.dtype == np.int32
    assert found.step_code == expected.step_code
    assert found.centroids == expected.centroids
    assert found.shifts == expected.shifts


class TestTables:
    def test_the_hash_is_in_the_document(self):
        found = hashlib.sha256(features_reference.TABLES.read_bytes()).hexdigest()
        assert re.findall(r"(?m)^[0-9a-f]{64}$", DOCUMENT.read_text()) == [found]

    def test_arrays_are_those_of_the_document(self):
        with np.load(features_reference.TABLES) as archive:
            found = {name: (array.dtype.str, array.shape) for name, array in archive.items()}
        weights = ("<u2", (LEVEL_CLASSES, len(MASKS), len(PHASE_ORDER), N_WEIGHTS))
        assert found == {
            "coefficient_weights": weights,
            "flag_weights": weights,
            "buckets": ("<u2", (N_CONTEXTS, N_BUCKETS)),
            "present": ("<u2", (N_CONTEXTS,)),
        }
        assert (N_CONTEXTS, N_BUCKETS, LEVEL_CLASSES, N_WEIGHTS) == (96, 92, 4, 26)

    def test_all_symbols_can_be_coded(self):
        tables = load_tables()
        assert tables.buckets.min() > 0
        assert 0 < tables.present.min() <= tables.present.max() < 1

    @pytest.mark.parametrize("kind", ["buckets", "present"])
    def test_the_coder_has_the_integers_of_the_document(self, kind):
        models = {"buckets": bucket_model, "present": flag_model}
        rng = np.random.default_rng(0)
        for context, weights in enumerate(getattr(features_reference.load_tables(), kind)):
            symbols = rng.permutation(np.arange(len(weights) - 1).repeat(3)).astype(np.int32)
            encoder = constriction.stream.queue.RangeEncoder()
            encoder.encode(symbols, models[kind](context))
            code = RangeDecoder(encoder.get_compressed().astype("<u4").tobytes())
            assert [code.symbol(weights) for _ in symbols] == symbols.tolist()

    def test_the_largest_sum_is_below_what_contexts_are_defined_for(self):
        tables = load_tables()
        largest = int(REPRESENTED.max())
        for weights, own in ((tables.coefficient_weights, largest), (tables.flag_weights, 65535)):
            # Bias; own, around, total, around in the coarser level; bands; around them; inside.
            most = [1, own, 6 * own, 65535, 6 * 65535, *[own] * 7, *[6 * own] * 7]
            most += [2 ** pattern.bit_count() * own for pattern in range(1, 8)]
            assert (weights.astype(np.int64) @ np.array(most)).max() < 1 << 32


class TestBuckets:
    def test_buckets_are_those_of_the_document(self):
        found = list(zip(BUCKET_BASE[:-1].tolist(), BUCKET_BITS.tolist(), strict=True))
        assert found == features_reference.BUCKETS
        assert REPRESENTED.tolist() == features_reference.STANDS_FOR.tolist()
        assert BUCKET_BASE[-1] == MAX_MAGNITUDE + 1 == 1 << 24

    def test_buckets_cover_every_magnitude_once(self):
        ends = [base + (1 << bits) for base, bits in features_reference.BUCKETS]
        assert ends == BUCKET_BASE[1:].tolist()

    @given(st.integers(0, (1 << 32) - 1), st.integers(-MAX_SHIFT, MAX_SHIFT))
    @example(7, 0)
    @example(8, 0)
    @example((1 << 32) - 1, -MAX_SHIFT)
    @example((1 << 26) + (1 << 25), 0)
    def test_contexts_are_those_of_the_document(self, total, shift):
        assert context_of(total, shift) == features_reference.context_of(total, shift)


class TestLevels:
    @given(grids(max_size=200))
    def test_levels_are_those_of_the_document(self, grid):
        found = [
            (level.fine, level.low, {mask: level.band_slices(mask) for mask in level.masks})
            for level in feature_levels(grid)
        ]
        expected = [
            (level.fine, level.low, level.bands) for level in features_reference.levels_of(grid)
        ]
        assert found == expected
        assert [list(bands) for _, _, bands in found] == [list(bands) for *_, bands in expected]

    @pytest.mark.parametrize(
        ("grid", "groups"),
        [
            ((7, 7, 7), [[]]),
            ((1, 1, 8), [[], [0]]),
            ((14, 5, 15), [[], [1], [0]]),
            ((128, 20, 1), [[4, 3, 2], [1], [0]]),
        ],
    )
    def test_the_finest_two_levels_have_segments_of_their_own(self, grid, groups):
        found = [[level.number for level in group] for group in segments_of(feature_levels(grid))]
        assert found == groups


class TestBands:
    @settings(max_examples=60)
    @given(grids(), st.integers(1, 3), st.sampled_from(KINDS), seeds)
    def test_symbols_come_back(self, grid, volumes, kind, seed):
        rng = np.random.default_rng(seed)
        levels = feature_levels(grid)
        symbols = some_symbols(rng, kind, volumes, grid)
        low_passes, shifts = low_passes_of(symbols, levels), some_shifts(rng, levels)
        segments = encode_bands(symbols, levels, low_passes, shifts)
        assert len(segments) == len(segments_of(levels))
        found = decode_bands(segments, grid, levels, low_passes, shifts)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, symbols)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("grid", BLOCKED_GRIDS)
    def test_blocked_bands_come_back(self, grid, kind):
        levels = feature_levels(grid)
        assert levels[0].is_blocked(levels[0].masks[0])
        symbols = some_symbols(np.random.default_rng(7), kind, 2, grid)
        symbols[:, : grid[0] // 2, :, : grid[2] // 2] = 0
        low_passes, shifts = low_passes_of(symbols, levels), no_shifts(levels)
        segments = encode_bands(symbols, levels, low_passes, shifts)
        found = decode_bands(segments, grid, levels, low_passes, shifts)
        np.testing.assert_array_equal(found, symbols)

    def test_a_band_is_blocked_from_its_size_on(self):
        assert BLOCKED_SIZE == 4096
        for grid, blocked in (((32, 32, 32), True), ((32, 32, 31), False)):
            assert feature_levels(grid)[0].is_blocked(1) == blocked

    def test_what_is_absent_costs_next_to_nothing(self):
        grid = (64, 64, 64)
        levels = feature_levels(grid)
        symbols = np.zeros((1, *grid), np.int32)
        low_passes = low_passes_of(symbols, levels)
        empty = encode_bands(symbols, levels, low_passes, no_shifts(levels))
        assert sum(len(s.coded) + len(s.plain) for s in empty) < 100
        symbols[0, 40:44, 40:44, 40:44] = 3
        one = encode_bands(symbols, levels, low_passes, no_shifts(levels))
        assert sum(len(s.coded) + len(s.plain) for s in one) < 150

    @settings(max_examples=20)
    @given(st.sampled_from([(34, 20, 70), (1, 45, 33), (1, 2, 100), (20, 1, 9)]), seeds)
    def test_low_levels_can_be_read_alone(self, grid, seed):
        levels = feature_levels(grid)
        symbols = some_symbols(np.random.default_rng(seed), "small", 2, grid)
        low_passes, shifts = low_passes_of(symbols, levels), no_shifts(levels)
        segments = encode_bands(symbols, levels, low_passes, shifts)
        for count in range(1, len(segments)):
            expected = symbols.copy()
            missing = len(segments) - count
            for level in levels[:missing]:
                for mask in level.masks:
                    expected[:, *level.band_slices(mask)] = 0
            found = decode_bands(segments[:count], grid, levels, low_passes, shifts)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(
                wavelet.inverse(found.astype(np.float32), skip_levels=missing),
                wavelet.inverse(symbols.astype(np.float32), skip_levels=missing),
            )

    def test_contexts_save_bits(self):
        """Against the entropy of the buckets themselves, on symbols whose size varies slowly."""
        grid = (48, 48, 48)
        levels = feature_levels(grid)
        rng = np.random.default_rng(3)
        ramp = np.linspace(0, 1, 48)
        scale = 8 * (ramp[:, None, None] * ramp[:, None] * ramp) ** 2
        coefficients = wavelet.forward((rng.normal(0, 1, (1, *grid)) * scale).astype(np.float32))
        symbols = np.rint(coefficients).astype(np.int32)
        low_passes = low_passes_of(symbols, levels)
        segments = encode_bands(symbols, levels, low_passes, no_shifts(levels))
        coded_bits = 8 * sum(len(s.coded) for s in segments)
        counts = np.bincount(np.searchsorted(BUCKET_BASE, np.abs(symbols).reshape(-1), "right"))
        shares = counts[counts > 0] / symbols.size
        assert coded_bits < -0.75 * symbols.size * (shares @ np.log2(shares))


class TestSteps:
    def test_steps_are_those_of_the_format(self):
        steps = [feature_step(code) for code in range(MAX_STEP_CODE + 1)]
        assert steps == [float(features_reference.step_of(code)) for code in range(2048)]
        assert (steps[0], steps[64], steps[4 * 64 + 32]) == (16.0, 8.0, float(np.float32(2**-0.5)))
        assert all(a > b for a, b in itertools.pairwise(steps))

    @given(st.integers(0, MAX_STEP_CODE))
    def test_a_step_has_its_own_code(self, code):
        # A little less, since rounded to float32 a step may lie above its exact value.
        assert step_code(feature_step(code) * (1 - 1e-6)) == code

    @given(st.floats(2.0**-40, 2.0**10))
    def test_the_code_is_of_the_next_larger_step(self, step):
        code = step_code(step)
        assert 0 <= code <= MAX_STEP_CODE
        if feature_step(MAX_STEP_CODE) <= step <= feature_step(0):
            assert 1 - 1e-6 <= feature_step(code) / step < 2 ** (1 / 64) * (1 + 1e-6)


# Written by hand from docs/format.md §9.2.
SMALL_GRID = (1, 1, 3)
SMALL = bytes.fromhex(
    "8001 00"  # step 2^(4 - 384 / 64) = 1/4, no centroids, no shifts
    "05 0d"  # context 5, centre -7
)


class TestSection:
    @settings(max_examples=60)
    @given(grids(), st.integers(1, 3), st.sampled_from(KINDS), seeds)
    def test_sections_come_back(self, grid, volumes, kind, seed):
        features, low_passes = some_features(seed, grid, volumes, kind)
        body = write_features(features, low_passes)
        found = read_features(body, grid, volumes)
        assert_same(found, features)
        assert write_features(found, low_passes) == body
        # What the bands say no more about is left out.
        empty = not any(any(pair) for pair in features.centroids)
        assert (body[2] & 1 == 0) == empty

    @settings(max_examples=40)
    @given(grids(max_size=30), st.integers(1, 2), st.sampled_from(KINDS), seeds)
    def test_the_second_reader_agrees(self, grid, volumes, kind, seed):
        features, low_passes = some_features(seed, grid, volumes, kind)
        reference = features_reference.read(write_features(features, low_passes), grid, volumes)
        np.testing.assert_array_equal(reference.symbols, features.symbols)
        assert reference.step_code == features.step_code
        assert tuple(reference.centroids) == features.centroids
        assert tuple(tuple(row.values()) for row in reference.shifts) == features.shifts
        assert [LowPass(*corner) for corner in reference.corners] == low_passes
        expected = features_reference.coefficients_of(reference)
        found = coefficients_of(features)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("grid", BLOCKED_GRIDS)
    def test_the_second_reader_agrees_on_blocked_bands(self, grid):
        features, low_passes = some_features(11, grid, 2, "small")
        features.symbols[0] *= np.random.default_rng(1).random(grid) < 0.01
        features.symbols[1, ..., grid[2] // 2 :] = 0
        low_passes = low_passes_of(features.symbols, feature_levels(grid))
        reference = features_reference.read(write_features(features, low_passes), grid, 2)
        np.testing.assert_array_equal(reference.symbols, features.symbols)

    def test_exact_bytes(self):
        symbols = np.array([[[[-7, -9, 5]]]], np.int32)
        low_pass = LowPass(5, -7)
        body = write_features(Features(symbols, 384, (), ()), [low_pass])
        (segment,) = encode_bands(symbols, (), [low_pass], ())
        # -2: negative; 12: positive, and no remainder beyond the base 12 of bucket 10, of 1 bit.
        assert bytes(segment.plain) == bytes([0b001])
        assert body == SMALL + bytes([len(segment.coded), 1]) + bytes(segment.coded) + b"\x01"
        found = read_features(body, SMALL_GRID, 1)
        np.testing.assert_array_equal(found.symbols, symbols)
        assert coefficients_of(found).reshape(-1).tolist() == [-1.75, -2.25, 1.25]

    def test_plain_bits_go_from_low_to_high(self):
        # Remainders of 100 = 96 + 4 (4 bits) and of 9 = 8 + 1 (1 bit), with signs.
        symbols = np.array([[[[-100, 9, 1]]]], np.int32)
        (segment,) = encode_bands(symbols, (), [LowPass(40, 0)], ())
        assert bytes(segment.plain) == bytes([0b0_10_0100_1])

    def test_centroids_and_shifts_take_bytes_only_where_there_are_any(self):
        grid = (16, 16, 16)
        levels = feature_levels(grid)
        symbols = np.zeros((1, *grid), np.int32)
        none = tuple((0, 0) for _ in levels)
        bands = sum(len(level.masks) for level in levels)
        sizes = {}
        for one, shift in itertools.product((0, -5), (0, 2)):
            centroids = ((one, 0), *none[1:])
            shifts = ((shift, *[0] * 6), *no_shifts(levels)[1:])
            features = Features(symbols, 9, centroids, shifts)
            body = write_features(features, [LowPass(0, 0)])
            assert_same(read_features(body, grid, 1), features)
            segments = encode_bands(symbols, levels, [LowPass(0, 0)], shifts)
            sizes[one, shift] = len(body) - sum(len(s.coded) + len(s.plain) for s in segments)
        assert sizes[0, 0] == 3 + 2 + 2 * len(segments_of(levels))
        assert sizes[-5, 0] - sizes[0, 0] == 2 * len(levels)
        assert sizes[0, 2] - sizes[0, 0] == bands
        assert sizes[-5, 2] - sizes[0, 0] == 2 * len(levels) + bands


@pytest.mark.parametrize("grid", [(64, 60, 57), (1, 200, 171), (1, 1, 1000), (5, 6, 7)])
@pytest.mark.parametrize("step", [2.0**-4, 2.0**-12])
def test_readers_stay_within_the_precision_of_the_document(grid, step):
    rng = np.random.default_rng(17)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in grid), indexing="ij")
    volume = 0.5 + 0.3 * np.sin(sum(axes) * 4) + 0.2 * rng.integers(0, 2, grid)
    coefficients = wavelet.forward(volume[None].astype(np.float32))
    quantised = np.rint(coefficients / np.float32(step)) * np.float32(step)
    exact = features_reference.inverse(quantised, features_reference.levels_of(grid))
    assert np.abs(wavelet.inverse(quantised) - exact).max() <= PRECISION
    on_torch = torch_wavelet.inverse(torch.from_numpy(quantised)).numpy()
    assert np.abs(on_torch - exact).max() <= PRECISION


GRID = (9, 8, 10)


def section_parts() -> tuple[bytes, list[bytes]]:
    """A section of `GRID` up to its lengths, and its codes and plain bits in turn."""
    features, low_passes = some_features(5, GRID)
    segments = encode_bands(features.symbols, feature_levels(GRID), low_passes, features.shifts)
    parts = [bytes(part) for s in segments for part in (s.coded, s.plain)]
    body = write_features(features, low_passes)
    tail = with_lengths(b"", parts)
    assert body.endswith(tail)
    return body[: -len(tail)], parts


def with_lengths(head: bytes, parts: list[bytes]) -> bytes:
    return head + b"".join(write_varint(len(part)) for part in parts) + b"".join(parts)


def flipped(body: bytes, bit: int) -> bytes:
    damaged = bytearray(body)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


class TestRejections:
    @pytest.fixture(scope="class")
    @classmethod
    def body(cls) -> bytes:
        return with_lengths(*section_parts())

    def test_every_truncation(self, body):
        for length in range(len(body)):
            with pytest.raises(TruncatedStreamError):
                read_features(body[:length], GRID, 1)

    def test_bytes_after_the_end(self, body):
        for extra in (b"\0", b"\1", bytes(100)):
            with pytest.raises(CorruptStreamError, match="follow"):
                read_features(body + extra, GRID, 1)

    def test_every_bit_flipped(self, body):
        for bit in range(8 * len(body)):
            try:
                found = read_features(flipped(body, bit), GRID, 1)
            except FormatError:
                continue
            assert found.symbols.shape == (1, *GRID)
            assert np.isfinite(coefficients_of(found)).all()

    def test_the_second_reader_rejects_the_same(self, body):
        bits = [*range(8 * 20), *range(8 * 20, 8 * len(body), 29)]
        accepted = 0
        for bit in bits:
            damaged = flipped(body, bit)
            try:
                found = read_features(damaged, GRID, 1)
            except FormatError:
                with pytest.raises(ValueError, match=r"."):
                    features_reference.read(damaged, GRID, 1)
                continue
            accepted += 1
            reference = features_reference.read(damaged, GRID, 1)
            np.testing.assert_array_equal(found.symbols, reference.symbols)
        assert 0 < accepted < len(bits)

    def test_bits_flipped_in_blocked_bands(self):
        grid = (33, 34, 32)
        features, low_passes = some_features(8, grid, kind="sparse")
        levels = feature_levels(grid)
        assert all(levels[0].is_blocked(mask) for mask in levels[0].masks)
        body = write_features(features, low_passes)
        finest = encode_bands(features.symbols, levels, low_passes, features.shifts)[-1]
        signs = 8 * (len(body) - len(finest.plain))
        code = signs - 8 * len(finest.coded)
        # Damaged code is refused: it lacks words or signs in the end, or leaves some over.
        for bit in range(code, signs, 97):
            with pytest.raises(CorruptStreamError, match="features"):
                read_features(flipped(body, bit), grid, 1)
        # Symbols so small have no remainders; less than a byte at the end is unused.
        for bit in range(signs, 8 * len(body) - 7, 7):
            found = read_features(flipped(body, bit), grid, 1)
            changed = found.symbols != features.symbols
            assert np.count_nonzero(changed) == 1
            assert found.symbols[changed] == -features.symbols[changed]

    @settings(max_examples=200)
    @given(
        st.binary(max_size=120), st.integers(1, 3), st.sampled_from([GRID, (1, 1, 1), (1, 9, 8)])
    )
    def test_random_bytes(self, body, volumes, grid):
        try:
            found = read_features(body, grid, volumes)
        except FormatError:
            return
        assert found.symbols.shape == (volumes, *grid)

    @settings(max_examples=100)
    @given(st.binary(max_size=80), st.binary(max_size=80), st.booleans())
    def test_random_code(self, coded, plain, trimmed):
        coded = coded.rstrip(b"\0") if trimmed else coded
        head = struct.pack("<HBBB", 640, 0, 30, 0) + b"\0\0"
        body = head + write_varint(len(coded)) + write_varint(len(plain)) + coded + plain
        try:
            found = read_features(body, (8, 8, 8), 1)
        except FormatError:
            return
        assert np.abs(found.symbols).max() <= MAX_MAGNITUDE

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (0, b"\x00\x08", "step code"),
            (0, b"\xff\xff", "step code"),
            (2, b"\x07", "tiles"),
            (2, b"\x0b", "flags"),
            (2, b"\x83", "flags"),
            (5, b"\x20", "shift"),
            (5, b"\xe0", "shift"),
            (5, b"\x80", "shift"),
            (11, b"\x7f", "shift"),
            (12, b"\x60", "context"),
            (12, b"\xff", "context"),
            (13, write_varint(2 * (MAX_MAGNITUDE + 1) - 1), "centre"),
            (13, write_varint(2 * (MAX_MAGNITUDE + 1)), "centre"),
            (13, write_varint(MAX_VARINT), "centre"),
            (13, b"\x80\x00", "varint"),
            (13, b"\xff" * 10, "varint"),
        ],
    )
    def test_fields_out_of_range(self, body, offset, value, message):
        # Step code, flags, two centroids, seven shifts, context, centre: one level of all bands.
        assert len(feature_levels(GRID)) == 1
        assert body[2] == 3
        damaged = body[:offset] + value + body[offset + len(value) :]
        with pytest.raises(CorruptStreamError, match=message):
            read_features(damaged, GRID, 1)

    def test_limits_themselves_are_allowed(self):
        levels = feature_levels(GRID)
        symbols = np.zeros((1, *GRID), np.int32)
        for centre, shift in itertools.product((MAX_MAGNITUDE, -MAX_MAGNITUDE), (31, -31)):
            corner = low_pass_slices(levels, GRID)
            symbols[0][corner] = centre
            symbols[0, -1, -1, -1] = -centre
            shifts = ((shift,) * 7,)
            features = Features(symbols, MAX_STEP_CODE, ((-128, 127),), shifts)
            body = write_features(features, [LowPass(N_CONTEXTS - 1, centre)])
            assert_same(read_features(body, GRID, 1), features)

    @pytest.mark.parametrize("absurd", [MAX_VARINT, 1 << 40, 2000])
    @pytest.mark.parametrize("position", range(4))
    def test_absurd_lengths(self, position, absurd):
        head, parts = section_parts()
        lengths = [len(part) for part in parts]
        lengths[position] = absurd
        with pytest.raises(TruncatedStreamError):
            read_features(head + b"".join([*map(write_varint, lengths), *parts]), GRID, 1)

    @pytest.mark.parametrize(("source", "target"), list(itertools.permutations(range(4), 2)))
    def test_lengths_that_move_bytes_from_one_part_to_another(self, source, target):
        head, parts = section_parts()
        bodies = b"".join(parts)
        for moved in (1, len(parts[source])):
            lengths = [len(part) for part in parts]
            lengths[source] -= moved
            lengths[target] += moved
            ends = [0, *itertools.accumulate(lengths)]
            changed = [bodies[start:stop] for start, stop in itertools.pairwise(ends)]
            try:
                found = read_features(with_lengths(head, changed), GRID, 1)
            except CorruptStreamError:
                continue
            assert found.symbols.shape == (1, *GRID)

    @pytest.mark.parametrize("segment", [0, 1])
    def test_code_and_plain_bits_that_do_not_fit(self, segment):
        head, parts = section_parts()
        code, plain = parts[2 * segment : 2 * segment + 2]
        # To whole words, so that what follows begins a new one.
        code += b"\1" * (-len(code) % 4)

        def message(code: bytes, plain: bytes) -> str:
            changed = [*parts[: 2 * segment], code, plain, *parts[2 * segment + 2 :]]
            with pytest.raises(CorruptStreamError) as caught:
                read_features(with_lengths(head, changed), GRID, 1)
            return str(caught.value)

        assert "zero byte" in message(code + b"\0", plain)
        assert "words follow" in message(code + bytes(8) + b"\1", plain)
        assert "signs and remainders" in message(code, plain + b"\0")
        assert "signs and remainders" in message(code, plain[:-1])
        assert "signs and remainders" in message(code, b"")
        assert "features" in message(b"\xff" * len(code), plain)

    def test_unused_plain_bits_are_zero(self):
        symbols = np.array([[[[1, 0, 0]]]], np.int32)
        body = write_features(Features(symbols, 0, (), ()), [LowPass(10, 0)])
        assert body[-1] == 0
        assert_same(read_features(body, SMALL_GRID, 1), Features(symbols, 0, (), ()))
        for bit in range(1, 8):
            with pytest.raises(CorruptStreamError, match="signs and remainders"):
                read_features(body[:-1] + bytes([1 << bit]), SMALL_GRID, 1)

    @pytest.mark.parametrize(
        ("grid", "volumes"),
        [((2**20, 2**20, 2**20), 1), ((1, 1, 2**40), 1), ((1, 1, 1), 2**40), ((8, 9, 10), 2**50)],
    )
    def test_huge_chunks_cost_nothing_before_the_section_runs_out(self, body, grid, volumes):
        with AllocationMeter() as meter, pytest.raises(FormatError):
            read_features(body[:60], grid, volumes)
        assert meter.peak_bytes < 2_000_000

    @pytest.mark.parametrize("kind", ["zero", "small", "wide"])
    def test_memory_goes_with_the_voxels(self, kind):
        grid = (80, 96, 88)
        features, low_passes = some_features(2, grid, kind=kind, plain=True)
        body = write_features(features, low_passes)
        with AllocationMeter() as meter:
            read_features(body, grid, 1)
        assert meter.peak_bytes < 10 * math.prod(grid) + 2 * len(body)


@pytest.mark.parametrize(("dtype", "order"), [("|u1", "C"), (">f4", "F")])
def test_damaged_streams_decode_to_an_error_or_the_right_shape(dtype, order):
    grid = (9, 12, 8)
    array = np.asarray(np.random.default_rng(4).integers(0, 99, (2, *grid)), dtype, order=order)
    info, _ = analyse(array)
    features, low_passes = some_features(6, grid, 2)
    body = write_features(features, low_passes)
    for bit in range(0, 8 * len(body), 5):
        sections = {Section.FEATURES: flipped(body, bit)}
        try:
            found = decode_chunk(write_stream(Header(info, 40.0, 1.0, sections)))
        except FormatError:
            continue
        assert (found.shape, found.dtype.str) == (array.shape, dtype)
        assert found.min() >= info.value_min
        assert found.max() <= info.value_max


@pytest.mark.parametrize("step", [0.02, 0.06, 0.2])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_estimate_of_the_choice_is_the_size_of_the_code(step, threads):
    grid = (64, 64, 64)
    levels = feature_levels(grid)
    rng = np.random.default_rng(9)
    axes = np.meshgrid(*(np.linspace(0, 3, n) for n in grid), indexing="ij")
    envelope = np.exp(-sum((axis - 1.5) ** 2 for axis in axes))
    volume = envelope * (1 + 0.1 * rng.standard_normal(grid))
    coefficients = wavelet.forward(volume[None].astype(np.float32))[0]
    choice = choose_symbols(coefficients, levels, step, 0.1, no_shifts(levels), threads)
    symbols = choice.symbols[None]
    assert symbols.any()
    low_passes = low_passes_of(symbols, levels)
    segments = encode_bands(symbols, levels, low_passes, no_shifts(levels))
    size_bits = 8 * sum(len(s.coded) + len(s.plain) for s in segments)
    assert choice.size_bits == pytest.approx(size_bits, rel=0.03, abs=200)
