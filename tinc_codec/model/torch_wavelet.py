"""Twin of `model.wavelet` in torch: differentiable, batched, on any device and float dtype."""

from itertools import pairwise

import torch

from tinc_codec.model.wavelet import Triple, level_gain, level_shapes, shape_of_level

ALPHA = -1.586134342059924
BETA = -0.052980118572961
GAMMA = 0.882911075530934
DELTA = 0.443506852043971
K = 1.1496043988602418

_AXES = (-1, -2, -3)


def forward(x: torch.Tensor) -> torch.Tensor:
    """Transform volumes [..., z, y, x] of a floating dtype; see `model.wavelet.forward`."""
    levels = []
    low = x
    for shape, corner in pairwise(level_shapes(_grid_of(x))):
        for axis in _AXES:
            if shape[axis] != corner[axis]:
                low = _split(low, axis)
        levels.append(low)
        low = _corner(low, corner)
    coefficients = low.clone()
    for level in reversed(levels):
        coefficients = _with_corner(level, coefficients)
    return coefficients


def inverse(c: torch.Tensor, skip_levels: int = 0) -> torch.Tensor:
    """Undo `forward`, or go back only to a coarser level; see `model.wavelet.inverse`.

    Raises
    ------
    ConfigError
        If there are not as many levels.
    """
    grid = _grid_of(c)
    shapes = level_shapes(grid)
    shape_of_level(grid, skip_levels)
    low = _corner(c, shapes[-1])
    for level in reversed(range(skip_levels, len(shapes) - 1)):
        shape, corner = shapes[level], shapes[level + 1]
        low = _with_corner(_corner(c, shape), low)
        for axis in reversed(_AXES):
            if shape[axis] != corner[axis]:
                low = _merge(low, axis)
    return low * level_gain(grid, skip_levels) if skip_levels else low.clone()


def _grid_of(x: torch.Tensor) -> Triple:
    z, y, x_size = x.shape[-3:]
    return z, y, x_size


def _corner(x: torch.Tensor, shape: Triple) -> torch.Tensor:
    z, y, x_size = shape
    return x[..., :z, :y, :x_size]


def _with_corner(x: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """Return a copy of x with its low-pass corner replaced."""
    x = x.clone()
    _corner(x, _grid_of(corner)).copy_(corner)
    return x


def _split(x: torch.Tensor, axis: int) -> torch.Tensor:
    lines = x.movedim(axis, -1)
    s, d = lines[..., 0::2], lines[..., 1::2]
    d = d + ALPHA * _around_odd(s, d.shape[-1])
    s = s + BETA * _around_even(d, s.shape[-1])
    d = d + GAMMA * _around_odd(s, d.shape[-1])
    s = s + DELTA * _around_even(d, s.shape[-1])
    return torch.cat([s * K, d / K], dim=-1).movedim(-1, axis)


def _merge(c: torch.Tensor, axis: int) -> torch.Tensor:
    lines = c.movedim(axis, -1)
    size = lines.shape[-1]
    low = (size + 1) // 2
    s, d = lines[..., :low] / K, lines[..., low:] * K
    s = s - DELTA * _around_even(d, s.shape[-1])
    d = d - GAMMA * _around_odd(s, d.shape[-1])
    s = s - BETA * _around_even(d, s.shape[-1])
    d = d - ALPHA * _around_odd(s, d.shape[-1])
    pairs = torch.stack([s[..., : size // 2], d], dim=-1).flatten(-2)
    return torch.cat([pairs, s[..., size // 2 :]], dim=-1).movedim(-1, axis)


def _around_odd(s: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the even neighbours of each of count odd samples, the last mirrored."""
    if count == s.shape[-1]:
        s = torch.cat([s, s[..., -1:]], dim=-1)
    return s[..., :-1] + s[..., 1:]


def _around_even(d: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sum of the odd neighbours of each of count even samples, the ends mirrored."""
    d = torch.cat([d[..., :1], d, d[..., -1:]], dim=-1)
    return d[..., :count] + d[..., 1 : count + 1]
