"""The tree section: exact bytes, round trips, and sections that no encoder writes."""

import dataclasses
import math
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import tree_reference
from tests.memory import AllocationMeter
from tests.trees import tree_shapes
from tinc_codec.entropy.weights import (
    GAUSSIAN,
    GEOMETRIC,
    MAX_MAGNITUDE,
    SymbolModel,
    encode_symbols,
)
from tinc_codec.errors import CorruptStreamError, FormatError, TruncatedStreamError
from tinc_codec.model.octree_mlp import TreeShape, uniform_widths
from tinc_codec.model.section import (
    TreeSection,
    fixed_bytes,
    parameter_limit,
    read_tree,
    tree_parameters,
    write_tree,
)
from tinc_codec.quantise.scalar import q_step

GRID = (8, 9, 10)

# Written by hand from docs/format.md §7 for a 1-D grid of 3 voxels; the code is 6 zero tensors'
# worth of nothing but for the head's bias, one symbol of 2 within magnitude 2.
SMALL_GRID = (1, 1, 3)
SMALL = bytes.fromhex(
    "01 01 00007041"  # one level of one layer, w0 = 15
    "02"  # two wide
    "0000003f 0000803e"  # offset 0.5, gain 0.25
    "10 00 00 00"  # weights: step 1/2, all zero
    "20 00 00 00"  # biases
    "30 00 00 00"  # the head's weights
    "10 40 00 02"  # its bias: step 1/2, geometric of mean magnitude 1, magnitude 2
)


def section_for(
    shape: TreeShape, volumes: int = 1, seed: int = 0, magnitude: int = 20
) -> tuple[TreeSection, list[np.ndarray]]:
    """A section with random symbols, and they."""
    rng = np.random.default_rng(seed)
    symbols, models, codes = [], [], []
    for tensor in shape.tensors:
        size = volumes * (tensor.stop - tensor.start)
        most = int(rng.integers(0, magnitude, endpoint=True))
        symbols.append(rng.integers(-most, most, size, endpoint=True).astype(np.int32))
        family = int(rng.integers(0, 2))
        model = SymbolModel(family, int(rng.integers(40, 110)), int(rng.integers(0, 128)), most)
        models.append(model)
        codes.append(int(rng.integers(0, 256)))
    scaling = rng.uniform(0, 1, (volumes, 2)).astype(np.float32)
    section = TreeSection(
        shape=shape,
        offsets=tuple(scaling[:, 0].tolist()),
        gains=tuple(scaling[:, 1].tolist()),
        step_codes=tuple(codes),
        models=tuple(models),
        coded=encode_symbols(symbols, models),
    )
    return section, symbols


def read_all(body: bytes, grid: tuple[int, int, int] = GRID, volumes: int = 1) -> np.ndarray:
    return tree_parameters(read_tree(body, grid, volumes), volumes)


class TestRoundTrip:
    @settings(max_examples=60)
    @given(tree_shapes(), st.integers(1, 3), st.integers(0, 999))
    def test_sections_come_back(self, shape, volumes, seed):
        limit = parameter_limit(volumes * math.prod(shape.grid))
        assume(volumes * shape.parameter_count <= limit)
        section, symbols = section_for(shape, volumes, seed)
        body = write_tree(section)
        found = read_tree(body, shape.grid, volumes)
        assert found == section
        assert write_tree(found) == body
        assert len(body) <= fixed_bytes(shape, volumes) + len(section.coded)
        parameters = tree_parameters(found, volumes)
        assert parameters.dtype == np.float32
        for tensor, values, code in zip(shape.tensors, symbols, section.step_codes, strict=True):
            expected = values.astype(np.float32) * np.float32(q_step(code))
            np.testing.assert_array_equal(
                parameters[:, tensor.start : tensor.stop].reshape(-1), expected
            )

    @settings(max_examples=40)
    @given(tree_shapes(max_voxels=600), st.integers(1, 2), st.integers(0, 999))
    def test_the_second_reader_agrees(self, shape, volumes, seed):
        section, symbols = section_for(shape, volumes, seed)
        tree = tree_reference.read(write_tree(section), shape.grid, volumes)
        assert tuple(tree.layers) == shape.layers
        assert tuple(map(tuple, tree.widths)) == shape.widths
        assert tree.w0 == shape.w0
        assert tree.scaling == list(zip(section.offsets, section.gains, strict=True))
        assert [code.step_code for code in tree.codes] == list(section.step_codes)
        assert tree.symbols == [values.tolist() for values in symbols]

    def test_exact_bytes(self):
        shape = TreeShape(SMALL_GRID, (1,), ((2,),), 15.0)
        models = (SymbolModel(GEOMETRIC, 0, 0, 0),) * 3 + (SymbolModel(GEOMETRIC, 64, 0, 2),)
        symbols = [np.zeros(n, np.int32) for n in (2, 2, 2)] + [np.array([2], np.int32)]
        coded = encode_symbols(symbols, models)
        section = TreeSection(shape, (0.5,), (0.25,), (16, 32, 48, 16), models, coded)
        assert write_tree(section) == SMALL + coded
        assert read_all(SMALL + coded, SMALL_GRID).tolist() == [[0, 0, 0, 0, 0, 0, 1.0]]

    def test_unequal_widths_take_a_byte_each(self):
        equal = TreeShape((16, 16, 16), (1, 1), uniform_widths((16, 16, 16), 2, (3, 2)), 1.0)
        unequal = dataclasses.replace(equal, widths=((3,), (2, 2, 2, 2, 2, 2, 2, 3)))
        a, b = (write_tree(section_for(shape, magnitude=0)[0]) for shape in (equal, unequal))
        assert len(b) == len(a) + 8
        assert fixed_bytes(unequal, 1) == fixed_bytes(equal, 1) + 8


class TestRejections:
    shape = TreeShape(GRID, (2, 1), ((4,), (3, 2, 1, 3, 3, 3, 2, 4)), 15.0)

    @pytest.fixture(scope="class")
    @classmethod
    def body(cls) -> bytes:
        return write_tree(section_for(cls.shape, seed=3)[0])

    def test_every_truncation(self, body):
        start = len(body) - len(read_tree(body, GRID, 1).coded)
        for length in range(start):
            with pytest.raises(TruncatedStreamError):
                read_all(body[:length])
        # A code that ends early reads on as zeros: wrong numbers, but as many.
        for length in range(start, len(body)):
            try:
                parameters = read_all(body[:length])
            except CorruptStreamError:
                continue
            assert parameters.shape == (1, self.shape.parameter_count)

    def test_every_bit_flipped(self, body):
        for bit in range(8 * len(body)):
            damaged = bytearray(body)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                parameters = read_all(bytes(damaged))
            except FormatError:
                continue
            assert parameters.ndim == 2
            assert parameters.size <= parameter_limit(math.prod(GRID))
            assert np.isfinite(parameters).all()

    @settings(max_examples=150)
    @given(st.binary(max_size=200), st.integers(1, 3))
    def test_random_bytes(self, body, volumes):
        try:
            parameters = read_all(body, GRID, volumes)
        except FormatError:
            return
        assert parameters.shape[0] == volumes
        assert parameters.size <= parameter_limit(volumes * math.prod(GRID))

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (0, b"\0", "levels"),
            (0, b"\x07", "levels"),
            (0, b"\x06\1\1\1\1\1\1", "levels"),
            (1, b"\0", "layers"),
            (2, b"\x09", "layers"),
            (3, struct.pack("<f", math.nan), "w0"),
            (3, struct.pack("<f", math.inf), "w0"),
            (3, struct.pack("<f", 0.0), "w0"),
            (3, struct.pack("<f", -1.0), "w0"),
            (3, struct.pack("<f", 1000.1), "w0"),
            (9, b"\0", "widths"),
            (17, struct.pack("<f", math.nan), "offsets and gains"),
            (17, struct.pack("<f", 257), "offsets and gains"),
            (21, struct.pack("<f", -257), "offsets and gains"),
            (21, struct.pack("<f", -math.inf), "offsets and gains"),
            (28, b"\xff\xff\x7f", "magnitude"),
            (28, b"\x80\x00", "magnitude"),
        ],
    )
    def test_fields_out_of_range(self, body, offset, value, message):
        # Levels, layers, w0, the root's width, 0, eight widths, offset, gain, first tensor.
        damaged = body[:offset] + value + body[offset + len(value) :]
        with pytest.raises(FormatError, match=message):
            read_all(damaged)

    def test_limits_themselves_are_allowed(self, body):
        for offset, value in ((3, 1000.0), (17, 256.0), (21, -256.0), (3, 1e-30)):
            changed = body[:offset] + struct.pack("<f", value) + body[offset + 4 :]
            assert read_all(changed).shape == (1, self.shape.parameter_count)

    def test_magnitude_limit(self):
        shape = TreeShape(SMALL_GRID, (1,), ((1,),), 15.0)
        body = bytes.fromhex("01 01 00007041 01 0000003f 0000803e" + "00000000" * 3 + "00ff00")
        model = SymbolModel(GEOMETRIC, 255, 0, MAX_MAGNITUDE)
        coded = encode_symbols([np.array([-MAX_MAGNITUDE], np.int32)], [model])
        assert read_all(body + b"\x80\x80\x02" + coded, SMALL_GRID)[0, -1] == -MAX_MAGNITUDE
        with pytest.raises(CorruptStreamError, match="magnitude"):
            read_all(body + b"\x81\x80\x02" + coded, SMALL_GRID)
        assert shape.parameter_count == 4

    def test_levels_beyond_the_grid(self, body):
        with pytest.raises(CorruptStreamError, match="too many"):
            read_all(body, (7, 7, 7))

    def test_too_many_parameters(self):
        grid = (64, 64, 64)
        shape = TreeShape(grid, (8, 8, 8), uniform_widths(grid, 3, (255, 255, 255)), 15.0)
        assert shape.parameter_count > parameter_limit(64**3)
        head = struct.pack("<4Bf3B", 3, 8, 8, 8, 15.0, 255, 255, 255)
        with pytest.raises(CorruptStreamError, match="parameters"):
            read_all(head + b"\0" * 4000, grid)

    def test_volumes_share_the_limit(self):
        grid = (1, 1, 4)
        shape = TreeShape(grid, (2,), ((60,),), 15.0)
        for volumes in (1, 2):
            body = write_tree(section_for(shape, volumes, magnitude=1)[0])
            if volumes * shape.parameter_count <= parameter_limit(volumes * 4):
                assert len(read_all(body, grid, volumes)) == volumes
            else:
                with pytest.raises(CorruptStreamError, match="parameters"):
                    read_all(body, grid, volumes)

    @pytest.mark.parametrize(
        ("grid", "volumes"),
        [((2**20, 2**20, 2**20), 1), ((1, 1, 2**40), 1), ((1, 1, 1), 2**40), ((8, 9, 10), 2**50)],
    )
    def test_huge_chunks_cost_nothing_before_the_section_runs_out(self, body, grid, volumes):
        with AllocationMeter() as meter, pytest.raises(FormatError):
            read_all(body[:60], grid, volumes)
        assert meter.peak_bytes < 2_000_000

    def test_code_after_its_end(self, body):
        for extra in (b"\0", b"\1" * 20):
            with pytest.raises(CorruptStreamError, match="weights"):
                read_all(body + extra)


def test_all_families_and_scales_can_be_read():
    shape = TreeShape(SMALL_GRID, (1,), ((1,),), 15.0)
    for family in (GEOMETRIC, GAUSSIAN):
        for scale in range(256):
            models = (SymbolModel(family, scale, 5, 3),) * 4
            symbols = [np.array([n], np.int32) for n in (-3, 0, 2, 3)]
            coded = encode_symbols(symbols, models)
            section = TreeSection(shape, (0.0,), (1.0,), (0,) * 4, models, coded)
            assert read_all(write_tree(section), SMALL_GRID).tolist() == [[-3, 0, 2, 3]]
