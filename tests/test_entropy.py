"""The entropy room: tables that every machine derives alike, words that never change."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import tree_reference
from tinc_codec.entropy.weights import (
    GAUSSIAN,
    GEOMETRIC,
    MAX_MAGNITUDE,
    SymbolModel,
    choose_model,
    decode_symbols,
    encode_symbols,
    probabilities,
)
from tinc_codec.errors import CorruptStreamError

# Made once by the code of version 1.0. A change here is a new major version of the format.
PINNED = {
    "geometric": (
        [SymbolModel(GEOMETRIC, 80, 0, 9)],
        [[0, 1, -1, 3, -9, 9, 0, 0, 2, -4, 5, 0]],
        "9011de83188cc2f6",
    ),
    "gaussian": (
        [SymbolModel(GAUSSIAN, 90, 0, 30)],
        [[0, 7, -30, 30, 12, -5, 1, 0, 3]],
        "d2ceb8822c001cdf",
    ),
    "zeros apart": (
        [SymbolModel(GEOMETRIC, 72, 100, 6), SymbolModel(GAUSSIAN, 77, 30, 4)],
        [[0, 0, 0, 0, 6, 0, 0, 0, -1, 0, 0, 2], [4, -4, 0, 1, -2, 0, 3]],
        "87b36bafbb7c7360",
    ),
    "a tensor of zeros in between": (
        [
            SymbolModel(GAUSSIAN, 64, 0, 2),
            SymbolModel(GEOMETRIC, 0, 0, 0),
            SymbolModel(GEOMETRIC, 64, 0, 2),
        ],
        [[1, -1, 2, 0], [0] * 9, [-2, 2, 0]],
        "dc07a6c5",
    ),
    "largest symbols": (
        [SymbolModel(GEOMETRIC, 184, 0, MAX_MAGNITUDE), SymbolModel(GAUSSIAN, 255, 1, 32768)],
        [[MAX_MAGNITUDE, -MAX_MAGNITUDE, 0], [-32768, 32768, 1234]],
        "006affff11bba62a090e802f30ded9c1",
    ),
    "steepest tables": (
        [SymbolModel(GEOMETRIC, 0, 0, 3), SymbolModel(GAUSSIAN, 0, 127, 3)],
        [[0, 3, 0, -3], [3, 0, 0, -3]],
        "023b80ff99f78ffcbef412f8",
    ),
    "a run of the likeliest": (
        [SymbolModel(GEOMETRIC, 40, 127, 1)],
        [[0] * 400 + [1] + [0] * 400],
        "c7188885",
    ),
}

models = st.builds(
    SymbolModel,
    family=st.sampled_from([GEOMETRIC, GAUSSIAN]),
    scale=st.integers(0, 255),
    zero=st.one_of(st.just(0), st.integers(0, 127)),
    magnitude=st.one_of(
        st.integers(0, 12), st.integers(0, 700), st.sampled_from([1, MAX_MAGNITUDE])
    ),
)


@st.composite
def coded_tensors(draw: st.DrawFn) -> tuple[list[np.ndarray], list[SymbolModel]]:
    """Tensors and models that need not suit them: any symbol within the magnitude may come."""
    chosen = draw(st.lists(models, min_size=0, max_size=4))
    tensors = []
    for model in chosen:
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        size = draw(st.integers(0, 80))
        values = rng.integers(-model.magnitude, model.magnitude, size, endpoint=True)
        if draw(st.booleans()):
            values = np.where(rng.random(size) < 0.9, 0, values)
        tensors.append(values.astype(np.int32))
    return tensors, chosen


def sizes_of(tensors: list[np.ndarray]) -> list[int]:
    return [len(tensor) for tensor in tensors]


def code_of(model: SymbolModel) -> tree_reference.TensorCode:
    return tree_reference.TensorCode(0, model.family, model.scale, model.zero, model.magnitude)


class TestTables:
    @given(models.filter(lambda model: model.magnitude))
    @settings(max_examples=60)
    def test_tables_are_positive_symmetric_and_normalisable(self, model):
        table = probabilities(model)
        assert table.dtype == np.float64
        assert table.shape == (2 * model.magnitude + 1,)
        assert (table > 0).all()
        assert np.isfinite(table).all()
        np.testing.assert_array_equal(table, table[::-1])
        # Falling away from 0, the zero symbol apart.
        assert (np.diff(table[model.magnitude + 1 :]) <= 0).all()
        if model.zero:
            assert table[model.magnitude] == model.zero / 128
            assert table.sum() == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("family", "scale"),
        # A Gaussian of a step or less is too narrow for its sum to be its integral.
        [*((GEOMETRIC, scale) for scale in (48, 64, 80, 100)), (GAUSSIAN, 80), (GAUSSIAN, 100)],
    )
    def test_the_scale_is_what_it_says(self, family, scale):
        magnitude = 2000
        table = probabilities(SymbolModel(family, scale, 0, magnitude))
        k = np.abs(np.arange(-magnitude, magnitude + 1))
        table /= table.sum()
        size = 2.0 ** (scale / 8 - 8)
        if family == GEOMETRIC:
            assert (table * k).sum() == pytest.approx(size, rel=1e-6)
        else:
            # The Gaussian's exponential is an approximation: (1 + x / 4096)^-4096.
            assert math.sqrt((table * k**2).sum()) == pytest.approx(size, rel=2e-3)

    @given(models.filter(lambda model: 0 < model.magnitude < 1000))
    @settings(max_examples=40)
    def test_quantised_weights_leave_room_for_every_symbol(self, model):
        weights = tree_reference.cumulative(code_of(model))
        assert weights[0] == 0
        assert weights[-1] == 1 << 24
        assert (np.diff(weights) >= 1).all()


class TestRoundTrip:
    @given(coded_tensors())
    @settings(max_examples=60)
    @example(([], []))
    @example(([np.zeros(0, np.int32)], [SymbolModel(GEOMETRIC, 64, 0, 5)]))
    def test_symbols_come_back(self, case):
        tensors, chosen = case
        coded = encode_symbols(tensors, chosen)
        assert not coded.endswith(b"\0")
        decoded = decode_symbols(coded, sizes_of(tensors), chosen)
        assert len(decoded) == len(tensors)
        for tensor, found in zip(tensors, decoded, strict=True):
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, tensor)

    @given(coded_tensors())
    @settings(max_examples=40)
    def test_the_second_reader_agrees(self, case):
        tensors, chosen = case
        decoder = tree_reference.RangeDecoder(encode_symbols(tensors, chosen))
        for tensor, model in zip(tensors, chosen, strict=True):
            if model.magnitude == 0:
                continue
            weights = tree_reference.cumulative(code_of(model))
            found = [decoder.symbol(weights) - model.magnitude for _ in tensor]
            assert found == tensor.tolist()
        assert len(decoder.words) <= decoder.taken

    def test_decoding_takes_any_buffer(self):
        tensors, chosen = [np.array([1, -1, 0], np.int32)], [SymbolModel(GAUSSIAN, 64, 0, 1)]
        coded = encode_symbols(tensors, chosen)
        (found,) = decode_symbols(memoryview(bytearray(coded)), [3], chosen)
        assert found.tolist() == [1, -1, 0]


class TestPinnedWords:
    @pytest.mark.parametrize("name", PINNED)
    def test_exact_bytes(self, name):
        chosen, values, expected = PINNED[name]
        tensors = [np.array(v, dtype=np.int32) for v in values]
        assert encode_symbols(tensors, chosen).hex() == expected
        decoded = decode_symbols(bytes.fromhex(expected), sizes_of(tensors), chosen)
        assert [found.tolist() for found in decoded] == values

    def test_a_long_code(self):
        k = np.arange(20000)
        symbols = (np.sin(k * k) * np.sin(k) * 40).astype(np.int32)
        model, bits = choose_model(symbols)
        coded = encode_symbols([symbols], [model])
        assert abs(8 * len(coded) - bits) < 40
        (found,) = decode_symbols(coded, [len(symbols)], [model])
        np.testing.assert_array_equal(found, symbols)


class TestChoice:
    @given(st.integers(0, 2**16), st.sampled_from(["laplace", "normal", "sparse", "uniform"]))
    @settings(max_examples=40)
    def test_the_promised_length_is_kept(self, seed, kind):
        rng = np.random.default_rng(seed)
        size, scale = int(rng.integers(1, 400)), 2.0 ** rng.uniform(-3, 9)
        drawn = {
            "laplace": rng.laplace(0, scale, size),
            "normal": rng.normal(0, scale, size),
            "sparse": rng.laplace(0, scale, size) * (rng.random(size) < 0.1),
            "uniform": rng.uniform(-scale, scale, size),
        }[kind]
        symbols = np.rint(drawn).clip(-MAX_MAGNITUDE, MAX_MAGNITUDE).astype(np.int32)
        model, bits = choose_model(symbols)
        assert model.magnitude == np.abs(symbols).max()
        coded = encode_symbols([symbols], [model])
        # At most five bytes end a code; leaving out zero bytes may save more than the estimate.
        assert 8 * len(coded) <= bits + 8 * 5
        assert 0 <= model.scale <= 255
        assert 0 <= model.zero <= 127

    @pytest.mark.parametrize("scale", [0.5, 2.0, 20.0])
    def test_each_family_is_near_the_entropy_of_its_own(self, scale):
        rng = np.random.default_rng(3)
        for drawn in (rng.laplace(0, scale, 5000), rng.normal(0, scale, 5000)):
            symbols = np.rint(drawn).astype(np.int32)
            _, bits = choose_model(symbols)
            _, counts = np.unique(symbols, return_counts=True)
            share = counts / len(symbols)
            # The empirical entropy leaves the table out of account, so it is a lower bound.
            entropy = -(share * np.log2(share)).sum()
            ideal = max(entropy, math.log2(2 * math.e * scale) - 0.3)
            assert bits / len(symbols) <= ideal + 0.12

    def test_families_are_told_apart(self):
        rng = np.random.default_rng(1)
        laplace = np.rint(rng.laplace(0, 30, 4000)).astype(np.int32)
        normal = np.rint(rng.normal(0, 30, 4000)).astype(np.int32)
        assert choose_model(laplace)[0].family == GEOMETRIC
        assert choose_model(normal)[0].family == GAUSSIAN

    def test_many_zeros_get_a_probability_of_their_own(self):
        symbols = np.zeros(1000, np.int32)
        symbols[:50] = np.arange(50) - 80
        assert choose_model(symbols)[0].zero > 100

    @pytest.mark.parametrize(
        "symbols",
        [[], [0], [0] * 50, [1], [-1], [MAX_MAGNITUDE], [-MAX_MAGNITUDE, MAX_MAGNITUDE],
         [0] * 5000 + [1], [0] * 5000 + [MAX_MAGNITUDE], [5] * 300],
    )  # fmt: skip
    def test_extremes(self, symbols):
        array = np.array(symbols, dtype=np.int32)
        model, bits = choose_model(array)
        assert math.isfinite(bits)
        assert bits >= 0
        coded = encode_symbols([array], [model])
        assert 8 * len(coded) <= bits + 40
        (found,) = decode_symbols(coded, [len(array)], [model])
        np.testing.assert_array_equal(found, array)
        if not array.any():
            assert (coded, bits) == (b"", 0.0)


class TestDamage:
    """Symbols of a damaged code may be wrong, but there are as many, within the magnitude."""

    @given(coded_tensors(), st.binary(max_size=60))
    @settings(max_examples=60)
    def test_random_words(self, case, data):
        tensors, chosen = case
        try:
            decoded = decode_symbols(data, sizes_of(tensors), chosen)
        except CorruptStreamError:
            return
        for tensor, model, found in zip(tensors, chosen, decoded, strict=True):
            assert found.shape == tensor.shape
            assert np.abs(found).max(initial=0) <= model.magnitude

    @pytest.mark.parametrize("name", PINNED)
    def test_every_bit_flipped(self, name):
        chosen, values, expected = PINNED[name]
        coded = bytes.fromhex(expected)
        sizes = [len(v) for v in values]
        for bit in range(8 * len(coded)):
            damaged = bytearray(coded)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                decoded = decode_symbols(bytes(damaged), sizes, chosen)
            except CorruptStreamError:
                continue
            assert [len(found) for found in decoded] == sizes
            assert all(
                np.abs(found).max(initial=0) <= model.magnitude
                for found, model in zip(decoded, chosen, strict=True)
            )

    def test_words_that_no_encoder_writes(self):
        model = SymbolModel(GEOMETRIC, 64, 0, 2)
        # Above the last interval: the range is no multiple of 2^24.
        with pytest.raises(CorruptStreamError, match="weights"):
            decode_symbols(b"\xff" * 8, [1], [model])

    @pytest.mark.parametrize("name", PINNED)
    def test_bytes_after_the_code(self, name):
        chosen, values, expected = PINNED[name]
        sizes = [len(v) for v in values]
        for extra in (b"\0", b"\0" * 40, b"\1" * 40, b"\0" * 40 + b"\1"):
            with pytest.raises(CorruptStreamError, match="weights"):
                decode_symbols(bytes.fromhex(expected) + extra, sizes, chosen)

    def test_bytes_for_no_symbols(self):
        for data in (b"\1", b"\1" * 8):
            with pytest.raises(CorruptStreamError, match="weights"):
                decode_symbols(data, [5], [SymbolModel(GEOMETRIC, 0, 0, 0)])
            with pytest.raises(CorruptStreamError, match="weights"):
                decode_symbols(data, [], [])
            with pytest.raises(CorruptStreamError, match="weights"):
                decode_symbols(data, [0], [SymbolModel(GEOMETRIC, 64, 0, 3)])


def test_models_compare_and_hash():
    model = SymbolModel(GEOMETRIC, 1, 2, 3)
    assert model == dataclasses.replace(model)
    assert hash(model) == hash(dataclasses.replace(model))
    assert model != dataclasses.replace(model, zero=0)
