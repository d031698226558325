"""The wavelet of the features, against its filter bank, its region form and its torch twin."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tinc_codec.errors import ConfigError
from tinc_codec.model import torch_wavelet, wavelet, wavelet_windows

# Antonini et al., "Image coding using wavelet transform", 1992, in JPEG 2000's normalisation:
# the centre tap and those to one side.
LOW_TAPS = (0.602949018236360, 0.266864118442875, -0.078223266528990, -0.016864118442875,
            0.026748757410810)  # fmt: skip
HIGH_TAPS = (1.115087052456994, -0.591271763114250, -0.057543526228500, 0.091271763114250)

ODD_SHAPES = [(1, 1, 1), (1, 1, 9), (9, 1, 1), (11, 8, 1), (3, 17, 9), (8, 1, 23), (13, 10, 11)]


@st.composite
def grids(draw, max_size=40):
    """Grids of small, odd and size-1 axes, one of them longer."""
    sizes = [draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, max_size))]
    return tuple(draw(st.permutations(sizes)))


@st.composite
def regions(draw, grid):
    """Boxes, planes, single voxels."""
    starts = [draw(st.integers(0, n - 1)) for n in grid]
    stops = [draw(st.integers(start + 1, n)) for start, n in zip(starts, grid, strict=True)]
    return tuple(zip(starts, stops, strict=True))


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filtered(lines, taps, first):
    """Every second sample, from first on, of the last axis convolved with symmetric taps."""
    size = lines.shape[-1]
    reach = len(taps) - 1
    padded = np.pad(lines, [(0, 0)] * (lines.ndim - 1) + [(reach, reach)], mode="reflect")
    total = taps[0] * padded[..., reach : reach + size]
    for k in range(1, len(taps)):
        left = padded[..., reach - k : reach - k + size]
        total = total + taps[k] * (left + padded[..., reach + k : reach + k + size])
    return total[..., first::2]


def by_filter_bank(volumes):
    """The coefficients by convolution in float64, with the low-pass volume of every level."""
    coefficients = volumes.astype(np.float64)
    low = coefficients.copy()
    lows = [low]
    while max(low.shape[1:]) >= 8:
        corner = [slice(None)]
        for axis in (1, 2, 3):
            size = low.shape[axis]
            corner.append(slice(0, (size + 1) // 2 if size >= 8 else size))
            if size >= 8:
                lines = np.moveaxis(low, axis, -1)
                parts = [
                    filtered(lines, LOW_TAPS, 0) * 2**0.5,
                    filtered(lines, HIGH_TAPS, 1) / 2**0.5,
                ]
                low = np.moveaxis(np.concatenate(parts, axis=-1), -1, axis)
        z, y, x = low.shape[1:]
        coefficients[:, :z, :y, :x] = low
        low = low[tuple(corner)]
        lows.append(low)
    return coefficients, lows


def assert_close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_levels_of_some_grids():
    assert wavelet.level_shapes((128, 128, 128)) == tuple(
        (n, n, n) for n in (128, 64, 32, 16, 8, 4)
    )
    assert wavelet.level_shapes((16, 100, 7)) == (
        (16, 100, 7), (8, 50, 7), (4, 25, 7), (4, 13, 7), (4, 7, 7),
    )  # fmt: skip
    assert wavelet.level_shapes((7, 1, 3)) == ((7, 1, 3),)


def test_bands_of_a_grid():
    finest, coarser = wavelet.bands((9, 16, 3))
    assert [band.mask for band in finest] == [4, 2, 6]
    assert finest[2] == (6, (slice(5, 9), slice(8, 16), slice(0, 3)), (4, 8, 3))
    assert [band.mask for band in coarser] == [2]
    assert coarser[0] == (2, (slice(0, 5), slice(4, 8), slice(0, 3)), (5, 4, 3))
    assert [band.mask for band in wavelet.bands((8, 8, 8))[0]] == [4, 2, 1, 6, 5, 3, 7]


@given(grids(max_size=150))
def test_bands_and_the_corner_cover_every_coefficient_once(grid):
    covered = np.zeros(grid, int)
    covered[tuple(slice(0, n) for n in wavelet.level_shapes(grid)[-1])] += 1
    for band in itertools.chain.from_iterable(wavelet.bands(grid)):
        assert covered[band.slices].shape == band.shape
        assert min(band.shape) > 0
        covered[band.slices] += 1
    assert (covered == 1).all()


@given(grids(), st.integers(1, 3), seeds)
def test_forward_is_the_filter_bank(grid, count, seed):
    volumes = noise(seed, count, *grid)
    before = volumes.copy()
    found = wavelet.forward(volumes)
    assert found.dtype == np.float32
    assert_close(found, by_filter_bank(volumes)[0])
    np.testing.assert_array_equal(volumes, before)


@given(grids(max_size=150), st.integers(1, 3), seeds)
def test_reconstruction(grid, count, seed):
    volumes = noise(seed, count, *grid)
    coefficients = wavelet.forward(volumes)
    before = coefficients.copy()
    assert_close(wavelet.inverse(coefficients), volumes)
    np.testing.assert_array_equal(coefficients, before)


@pytest.mark.parametrize("order", ["F", "reversed", "float64"])
def test_any_layout_is_read(order):
    volumes = noise(1, 2, 9, 12, 10)
    layouts = {
        "F": np.asfortranarray(volumes),
        "reversed": volumes[:, ::-1].copy()[:, ::-1],
        "float64": volumes.astype(np.float64),
    }
    expected = wavelet.forward(volumes)
    np.testing.assert_array_equal(wavelet.forward(layouts[order]), expected)


def test_no_volumes():
    empty = np.empty((0, 16, 16, 16), np.float32)
    assert wavelet.inverse(wavelet.forward(empty)).shape == empty.shape


@pytest.mark.parametrize("grid", [(64, 64, 64), (1, 128, 96), (1, 1, 4096)])
def test_noise_keeps_its_energy(grid):
    volumes = noise(5, 1, *grid)
    # The filters' own energy is 1.012 per axis and level, and the mirrored ends add to it.
    energy = np.square(wavelet.forward(volumes)).sum() / np.square(volumes).sum()
    assert energy == pytest.approx(1.03, abs=0.05)


def test_gains_of_some_levels():
    assert [wavelet.level_gain((128, 128, 128), k) for k in (0, 2)] == [1, 1 / 8]
    assert wavelet.level_gain((16, 100, 7), 3) == pytest.approx(2**-2.5)


@given(grids(), seeds, st.data())
def test_skipped_levels_leave_the_low_pass_volume(grid, seed, data):
    shapes = wavelet.level_shapes(grid)
    level = data.draw(st.integers(0, len(shapes) - 1))
    volumes = noise(seed, 2, *grid)
    found = wavelet.inverse(wavelet.forward(volumes), skip_levels=level)
    low = by_filter_bank(volumes)[1][level]
    assert_close(found, low * wavelet.level_gain(grid, level))


@given(grids(), st.integers(-(2**16), 2**16))
def test_a_constant_keeps_its_value_on_every_level(grid, value):
    coefficients = wavelet.forward(np.full((1, *grid), value, np.float32))
    for level, shape in enumerate(wavelet.level_shapes(grid)):
        assert_close(
            wavelet.inverse(coefficients, skip_levels=level),
            np.full((1, *shape), value, np.float32),
        )


@pytest.mark.parametrize("level", [-1, 3])
def test_levels_that_do_not_exist(level):
    coefficients = np.zeros((1, 16, 5, 9), np.float32)
    with pytest.raises(ConfigError, match=rf"level {level} .* levels 0 to 2"):
        wavelet.inverse(coefficients, skip_levels=level)
    with pytest.raises(ConfigError, match=rf"level {level} .* levels 0 to 2"):
        torch_wavelet.inverse(torch.from_numpy(coefficients), skip_levels=level)


@settings(max_examples=200)
@given(st.data(), seeds)
def test_a_region_has_the_bits_of_the_whole(data, seed):
    grid = data.draw(grids(max_size=100))
    region = data.draw(regions(grid))
    coefficients = noise(seed, 2, *grid)
    whole = wavelet.inverse(coefficients)
    box = tuple(slice(*interval) for interval in region)
    # Whatever needed_ranges leaves out is not looked at.
    ranges = wavelet_windows.needed_ranges(grid, region)
    needed = [tuple(slice(*interval) for interval in ranges[-1])]
    for level, lows in zip(wavelet.bands(grid), ranges[1:], strict=True):
        for band in level:
            inside = zip(band.slices, lows, strict=True)
            ends = [(s.start + lo, min(s.start + hi, s.stop)) for s, (lo, hi) in inside]
            needed.append(tuple(slice(*interval) for interval in ends))
    poisoned = np.full_like(coefficients, np.nan)
    for where in needed:
        poisoned[:, *where] = coefficients[:, *where]
    found = wavelet_windows.inverse_region(poisoned, region)
    np.testing.assert_array_equal(found, whole[:, *box])


def depended_boxes(grid, region):
    """Where all that a region depends on lies: the corner, and each band's (level, mask, box)."""
    ranges = wavelet_windows.depended_ranges(grid, region)
    corner = ranges[-1][0] if ranges else region
    boxes = []
    for number, (level, (lows, highs)) in enumerate(zip(wavelet.bands(grid), ranges, strict=True)):
        for band in level:
            box = []
            for axis, part in enumerate(band.slices):
                start, stop = (highs if band.mask & 4 >> axis else lows)[axis]
                box.append(slice(part.start + start, min(part.start + stop, part.stop)))
            boxes.append((number, band.mask, tuple(box)))
    return tuple(slice(*interval) for interval in corner), boxes


@settings(max_examples=200)
@given(st.data(), seeds)
def test_a_region_depends_on_nothing_else(data, seed):
    grid = data.draw(grids(max_size=100))
    region = data.draw(regions(grid))
    coefficients = noise(seed, 2, *grid)
    corner, boxes = depended_boxes(grid, region)
    poisoned = np.full_like(coefficients, np.nan)
    for where in (corner, *(box for *_, box in boxes)):
        poisoned[:, *where] = coefficients[:, *where]
    found = wavelet_windows.inverse_region(poisoned, region)
    expected = wavelet.inverse(coefficients)[:, *(slice(*interval) for interval in region)]
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=100)
@given(st.integers(0, 2), st.integers(64, 400), st.data())
def test_a_region_depends_on_every_end_of_it(axis, size, data):
    """Poison at one end of what is needed of one band or of the corner reaches the region."""
    grid, region = [2, 1, 3], [(0, 2), (0, 1), (1, 2)]
    grid[axis] = size
    start = data.draw(st.integers(0, size - 1))
    region[axis] = start, data.draw(st.integers(start + 1, min(size, start + 40)))
    coefficients = noise(1, 1, *grid)
    corner, boxes = depended_boxes(tuple(grid), tuple(region))
    for box in (corner, *(box for *_, box in boxes)):
        for end in (box[axis].start, box[axis].stop - 1):
            # Nothing where a band has no samples so far.
            if not box[axis].start <= end < box[axis].stop:
                continue
            poisoned = coefficients.copy()
            poisoned[:, *box[:axis], end, *box[axis + 1 :]] = np.nan
            assert np.isnan(wavelet_windows.inverse_region(poisoned, tuple(region))).any()


@pytest.mark.parametrize("grid", [(128, 128, 128), (70, 90, 33), (16, 100, 7)])
@pytest.mark.parametrize("kind", ["voxel", "plane z", "plane y", "plane x", "box", "all"])
def test_regions_of_large_volumes(grid, kind):
    coefficients = noise(3, 1, *grid)
    region = [(0, n) for n in grid]
    if kind == "voxel":
        region = [(n // 2, n // 2 + 1) for n in grid]
    elif kind == "box":
        region = [(n // 3, n // 3 * 2) for n in grid]
    elif kind != "all":
        axis = "zyx".index(kind[-1])
        region[axis] = (grid[axis] - 1, grid[axis])
    whole = wavelet.inverse(coefficients)[:, *(slice(*interval) for interval in region)]
    np.testing.assert_array_equal(
        wavelet_windows.inverse_region(coefficients, tuple(region)), whole
    )


def test_a_voxel_needs_few_coefficients():
    grid = (128, 128, 128)
    ranges = wavelet_windows.needed_ranges(grid, ((60, 61), (0, 1), (127, 128)))
    assert len(ranges) == len(wavelet.level_shapes(grid)) == 6
    counts = [8 * np.prod([stop - start for start, stop in lows]) for lows in ranges[1:]]
    assert max(counts) <= 8 * 9**3
    assert sum(counts) < np.prod(grid) / 100


@pytest.mark.parametrize("shape", [(1, 65, 70, 75), (5, 40, 50, 41), (1, 3, 400, 401)])
def test_threads_change_nothing(shape):
    volumes = noise(6, *shape)
    coefficients = wavelet.forward(volumes, 1)
    np.testing.assert_array_equal(wavelet.forward(volumes, 3), coefficients)
    alone = wavelet.inverse(coefficients, 1)
    np.testing.assert_array_equal(wavelet.inverse(coefficients, 3), alone)
    region = tuple((0, n) for n in shape[1:])
    np.testing.assert_array_equal(wavelet_windows.inverse_region(coefficients, region, 3), alone)


def test_volumes_are_independent_of_their_company():
    volumes = noise(7, 45, 48, 47, 48)
    coefficients = wavelet.forward(volumes)
    restored = wavelet.inverse(coefficients)
    for k in (0, 44):
        np.testing.assert_array_equal(coefficients[k], wavelet.forward(volumes[k : k + 1])[0])
        np.testing.assert_array_equal(restored[k], wavelet.inverse(coefficients[k : k + 1])[0])


@given(grids(), seeds, st.data())
def test_torch_agrees(grid, seed, data):
    volumes = noise(seed, 2, *grid)
    level = data.draw(st.integers(0, len(wavelet.level_shapes(grid)) - 1))
    coefficients = wavelet.forward(volumes)
    assert_close(torch_wavelet.forward(torch.from_numpy(volumes)).numpy(), coefficients)
    found = torch_wavelet.inverse(torch.from_numpy(coefficients), level).numpy()
    assert found.dtype == np.float32
    assert_close(found, wavelet.inverse(coefficients, skip_levels=level))


@pytest.mark.parametrize("batch", [(), (2,), (2, 1, 3)])
def test_torch_takes_any_batch(batch):
    volumes = torch.from_numpy(noise(8, *batch, 9, 1, 10))
    coefficients = torch_wavelet.forward(volumes)
    assert coefficients.shape == volumes.shape
    flat = torch_wavelet.forward(volumes.reshape(-1, 9, 1, 10)).reshape(volumes.shape)
    torch.testing.assert_close(coefficients, flat)
    torch.testing.assert_close(torch_wavelet.inverse(coefficients), volumes)


@pytest.mark.parametrize("grid", ODD_SHAPES[:-1] + [(9, 8, 9)])
def test_torch_gradients(grid):
    x = torch.from_numpy(noise(9, *grid)).double().requires_grad_()
    assert torch.autograd.gradcheck(torch_wavelet.forward, x, fast_mode=True)
    for level in range(len(wavelet.level_shapes(grid))):
        undo = functools.partial(torch_wavelet.inverse, skip_levels=level)
        assert torch.autograd.gradcheck(undo, x, fast_mode=True)


@pytest.mark.parametrize("grid", ODD_SHAPES)
def test_torch_results_never_alias_their_argument(grid):
    x = torch.ones(grid)
    torch_wavelet.forward(x).zero_()
    torch_wavelet.inverse(x).zero_()
    assert x.all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("grid", [*ODD_SHAPES, (64, 65, 66)])
def test_cuda_agrees(grid):
    volumes = noise(10, 2, *grid)
    coefficients = wavelet.forward(volumes)
    found = torch_wavelet.forward(torch.from_numpy(volumes).cuda())
    assert_close(found.cpu().numpy(), coefficients)
    assert_close(torch_wavelet.inverse(found).cpu().numpy(), volumes)
