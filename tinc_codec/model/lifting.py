"""Lifting steps of the CDF 9/7 wavelet, compiled: one level over many volumes, slab by slab.

The arithmetic is float32 in the order of `docs/format.md`, without contraction or reordering, so
that a sample has the same bits in whichever window, strip or thread it is computed. Kernels
release the GIL and leave threads to the caller. Coefficients lie as `model.wavelet` describes.

Along z and y the four steps run as one pass: at step i the samples of pair i enter and those of
an earlier pair leave, with a few rows of intermediate values kept between. The ends need no code
of their own: rows mirrored about an end give the same bits as the mirrored coefficients.
"""

import numpy as np

from tinc_codec.kernels import copy_row, helper, kernel

ALPHA = np.float32(-1.586134342059924)
BETA = np.float32(-0.052980118572961)
GAMMA = np.float32(0.882911075530934)
DELTA = np.float32(0.443506852043971)
LOW_GAIN = np.float32(1.1496043988602418)
HIGH_GAIN = np.float32(1 / 1.1496043988602418)

STRIP = 4096
"""Samples that pass through the steps along z side by side: runs of memory longer than a page."""


@kernel
def forward_planes(source, target, split_y, split_x, first, last):  # type: ignore[no-untyped-def]
    """Transform planes first to last - 1, counted through [volume, z], along x and y.

    source and target are [volume, z, y, x].
    """
    depth, height, width = source.shape[1:]
    plane = np.empty((height, width), np.float32)
    even = np.empty(width // 2 + 2, np.float32)
    odd = np.empty(width // 2 + 2, np.float32)
    rows = np.zeros((5, width), np.float32)
    for index in range(first, last):
        read = source[index // depth, index % depth]
        write = target[index // depth, index % depth]
        unlifted = plane if split_y else write
        for y in range(height):
            if split_x:
                _forward_row(read[y], unlifted[y], even, odd)
            else:
                copy_row(read[y], unlifted[y])
        if split_y:
            half = (height + 1) // 2
            for step in range(-2, half + 1):
                low = step - 1
                _forward_step(
                    plane[_mirrored(2 * step, height)],
                    plane[_mirrored(2 * step + 1, height)],
                    plane[_mirrored(2 * step + 2, height)],
                    rows[0], rows[1], rows[2],
                    write[low] if low >= 0 else rows[3],
                    write[half + low] if 0 <= low < height - half else rows[4],
                )  # fmt: skip


@kernel
def forward_depth(source, low, rest, split, corner, first, last):  # type: ignore[no-untyped-def]
    """Transform rows first to last - 1, counted through [volume, y], along z.

    source is [volume, z, y, x]; the corner of the result goes to low, what is outside of it to
    rest, which may be larger than the result; corner holds the corner's (z, y, x) size.
    """
    depth, height, width = source.shape[1:]
    flat = source.reshape(len(source), depth, height * width)
    half = corner[0]
    rows = np.zeros((5, min(_strip_rows(width), last - first) * width), np.float32)
    index = first
    while index < last:
        volume, y, count, a, b = _strip_at(index, last, height, width)
        index += count
        lows = rows[3, : b - a]
        highs = rows[4, : b - a]
        if split:
            for step in range(-2, half + 1):
                _forward_step(
                    flat[volume, _mirrored(2 * step, depth), a:b],
                    flat[volume, _mirrored(2 * step + 1, depth), a:b],
                    flat[volume, _mirrored(2 * step + 2, depth), a:b],
                    rows[0], rows[1], rows[2], lows, highs,
                )  # fmt: skip
                z = step - 1
                if z >= 0:
                    _scatter_low(lows, low[volume, z], rest[volume, z], corner, y, count)
                    if half + z < depth:
                        _scatter(highs, rest[volume, half + z], width, y, count)
        else:
            for z in range(depth):
                _scatter_low(
                    flat[volume, z, a:b], low[volume, z], rest[volume, z], corner, y, count
                )


@kernel
def inverse_depth(low, rest, target, split, corner, first, last):  # type: ignore[no-untyped-def]
    """Undo `forward_depth` for rows first to last - 1, counted through [volume, y]."""
    depth, height, width = target.shape[1:]
    flat = target.reshape(len(target), depth, height * width)
    half = corner[0]
    rows = np.zeros((8, min(_strip_rows(width), last - first) * width), np.float32)
    index = first
    while index < last:
        volume, y, count, a, b = _strip_at(index, last, height, width)
        index += count
        lows = rows[6, : b - a]
        highs = rows[7, : b - a]
        if split:
            for step in range(-2, depth // 2 + 2):
                z = _mirrored(2 * step, depth) // 2
                _gather_low(low[volume, z], rest[volume, z], lows, corner, y, count)
                z = half + _mirrored(2 * step + 1, depth) // 2
                _gather(rest[volume, z], highs, width, y, count)
                even = 2 * step - 2
                odd = 2 * step - 3
                _inverse_step(
                    lows, highs, rows[0], rows[1], rows[2], rows[3],
                    flat[volume, even, a:b] if 0 <= even < depth else rows[4],
                    flat[volume, odd, a:b] if 0 <= odd < depth else rows[5],
                )  # fmt: skip
        else:
            for z in range(depth):
                _gather_low(low[volume, z], rest[volume, z], flat[volume, z, a:b], corner, y, count)


@kernel
def inverse_planes(source, target, split_y, split_x, first, last):  # type: ignore[no-untyped-def]
    """Undo `forward_planes` for planes first to last - 1, counted through [volume, z]."""
    depth, height, width = source.shape[1:]
    half = (height + 1) // 2
    plane = np.empty((height, width), np.float32)
    even = np.empty(width // 2 + 2, np.float32)
    odd = np.empty(width // 2 + 2, np.float32)
    rows = np.zeros((6, width), np.float32)
    for index in range(first, last):
        read = source[index // depth, index % depth]
        write = target[index // depth, index % depth]
        unlifted = plane if split_x else write
        if split_y:
            for step in range(-2, height // 2 + 2):
                y_even = 2 * step - 2
                y_odd = 2 * step - 3
                _inverse_step(
                    read[_mirrored(2 * step, height) // 2],
                    read[half + _mirrored(2 * step + 1, height) // 2],
                    rows[0], rows[1], rows[2], rows[3],
                    unlifted[y_even] if 0 <= y_even < height else rows[4],
                    unlifted[y_odd] if 0 <= y_odd < height else rows[5],
                )  # fmt: skip
        if split_x:
            lifted = plane if split_y else read
            for y in range(height):
                _inverse_row(lifted[y], write[y], even, odd)
        elif not split_y:
            for y in range(height):
                copy_row(read[y], write[y])


@kernel
def gather_window(coefficients, spans, window):  # type: ignore[no-untyped-def]
    """Copy the samples of one level's window.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    spans : ndarray of int64
        (3, 4), per axis: where low-pass samples begin and how many there are, the same of
        high-pass samples.
    window : ndarray of float32
        Shape (volume, *sums of both numbers). Its low-pass corner receives nothing of use.
    """
    low_z, n_z, high_z, _ = spans[0]
    low_y, n_y, high_y, _ = spans[1]
    low_x, n_x, high_x, more_x = spans[2]
    for volume in range(window.shape[0]):
        for z in range(window.shape[1]):
            plane = coefficients[volume, low_z + z if z < n_z else high_z + z - n_z]
            for y in range(window.shape[2]):
                row = plane[low_y + y if y < n_y else high_y + y - n_y]
                out = window[volume, z, y]
                copy_row(row[low_x : low_x + n_x], out[:n_x])
                copy_row(row[high_x : high_x + more_x], out[n_x:])


@kernel
def gather_narrow(coefficients, spans, first, last, window):  # type: ignore[no-untyped-def]
    """Copy planes first to last - 1 of a window as `gather_window` does, to [volume, x, z, y]."""
    low_z, n_z, high_z, _ = spans[0]
    low_y, n_y, high_y, _ = spans[1]
    low_x, n_x, high_x, _ = spans[2]
    for volume in range(window.shape[0]):
        for z in range(first, last):
            plane = coefficients[volume, low_z + z if z < n_z else high_z + z - n_z]
            for y in range(window.shape[3]):
                row = plane[low_y + y if y < n_y else high_y + y - n_y]
                for x in range(window.shape[1]):
                    window[volume, x, z, y] = row[low_x + x if x < n_x else high_x + x - n_x]


@kernel
def inverse_windows(coefficients, low, spans, splits, insides):  # type: ignore[no-untyped-def]
    """Undo levels in windows, coarsest first: what is small at a single call.

    Parameters
    ----------
    coefficients : ndarray of float32
        Shape (volume, z, y, x).
    low : ndarray of float32
        Low-pass samples of the coarsest window.
    spans : ndarray of int64
        (level, 3, 4), as for `gather_window`.
    splits : ndarray of bool
        (level, 3): whether each axis is split.
    insides : ndarray of int64
        (level, 3, 2): from where to where the next level's low-pass samples lie in the window.

    Returns
    -------
    ndarray of float32
        What is inside of the last window.
    """
    n, start = len(low), np.int64(0)
    for level in range(len(spans)):
        span, split, inside = spans[level], splits[level], insides[level]
        depth, height = span[0, 1] + span[0, 3], span[1, 1] + span[1, 3]
        width = span[2, 1] + span[2, 3]
        rest = np.empty((n, depth, height, width), np.float32)
        half_way, window = np.empty_like(rest), np.empty_like(rest)
        gather_window(coefficients, span, rest)
        corner = low.shape[1], low.shape[2], low.shape[3]
        inverse_depth(low, rest, half_way, split[0], corner, start, n * height)
        inverse_planes(half_way, window, split[1], split[2], start, n * depth)
        z_first, y_first, x_first = inside[0, 0], inside[1, 0], inside[2, 0]
        z_size, y_size = inside[0, 1] - z_first, inside[1, 1] - y_first
        low = np.empty((n, z_size, y_size, inside[2, 1] - x_first), np.float32)
        for volume in range(n):
            for z in range(z_size):
                for y in range(y_size):
                    row = window[volume, z_first + z, y_first + y]
                    copy_row(row[x_first : inside[2, 1]], low[volume, z, y])
    return low


@helper
def _mirrored(position, size):  # type: ignore[no-untyped-def]
    """Reflect a position up to three samples beyond the ends of an axis of at least five."""
    position = abs(position)
    return position if position < size else 2 * size - 2 - position


@helper
def _strip_rows(width):  # type: ignore[no-untyped-def]
    return max(1, STRIP // width)


@helper
def _strip_at(index, last, height, width):  # type: ignore[no-untyped-def]
    """Give the strip of rows from index to at most last - 1, counted through [volume, y].

    Its volume, its first row there and how many it has; its samples within a flat plane, from, to.
    """
    y = index % height
    count = min(_strip_rows(width), last - index, height - y)
    return index // height, y, count, y * width, (y + count) * width


@helper
def _scatter(strip, plane, width, y, count):  # type: ignore[no-untyped-def]
    """Write a strip of count rows of width samples into a plane from row y on."""
    for k in range(count):
        copy_row(strip[k * width : (k + 1) * width], plane[y + k, :width])


@helper
def _scatter_low(strip, low, rest, corner, y, count):  # type: ignore[no-untyped-def]
    """Write a strip as `_scatter` does, the part within the corner into another plane."""
    width = len(strip) // count
    for k in range(count):
        row = strip[k * width : (k + 1) * width]
        inside = corner[2] if y + k < corner[1] else 0
        if inside:
            copy_row(row[:inside], low[y + k])
        copy_row(row[inside:], rest[y + k, inside:width])


@helper
def _gather(plane, strip, width, y, count):  # type: ignore[no-untyped-def]
    """Undo `_scatter`."""
    for k in range(count):
        copy_row(plane[y + k, :width], strip[k * width : (k + 1) * width])


@helper
def _gather_low(low, rest, strip, corner, y, count):  # type: ignore[no-untyped-def]
    """Undo `_scatter_low`."""
    width = len(strip) // count
    for k in range(count):
        row = strip[k * width : (k + 1) * width]
        inside = corner[2] if y + k < corner[1] else 0
        if inside:
            copy_row(low[y + k], row[:inside])
        copy_row(rest[y + k, inside:width], row[inside:])


@helper
def _forward_step(s, d, s_next, d1, s1, d2, low, high):  # type: ignore[no-untyped-def]
    """Take in pair i, put out pair i - 1; kept from step to step: d1[i-1], s1[i-1], d2[i-2]."""
    for x in range(s.shape[0]):
        t = d[x] + ALPHA * (s[x] + s_next[x])
        u = s[x] + BETA * (d1[x] + t)
        v = d1[x] + GAMMA * (s1[x] + u)
        low[x] = LOW_GAIN * (s1[x] + DELTA * (d2[x] + v))
        high[x] = HIGH_GAIN * v
        d1[x] = t
        s1[x] = u
        d2[x] = v


@helper
def _inverse_step(low, high, d2, s1, d1, s, even, odd):  # type: ignore[no-untyped-def]
    """Take in pair i; put out even sample i - 1 and odd sample i - 2.

    Kept from step to step: d2[i-1], s1[i-1], d1[i-2], s[i-2].
    """
    for x in range(low.shape[0]):
        t = LOW_GAIN * high[x]
        u = HIGH_GAIN * low[x] - DELTA * (d2[x] + t)
        v = d2[x] - GAMMA * (s1[x] + u)
        w = s1[x] - BETA * (d1[x] + v)
        odd[x] = d1[x] - ALPHA * (s[x] + w)
        even[x] = w
        d2[x] = t
        s1[x] = u
        d1[x] = v
        s[x] = w


@helper
def _forward_row(source, target, s, d):  # type: ignore[no-untyped-def]
    """Transform one row; scratch s [i] holds even sample i, d [i + 1] odd sample i."""
    n = source.shape[0]
    n_high = n // 2
    n_low = n - n_high
    for i in range(n_high):
        s[i] = source[2 * i]
        d[i + 1] = source[2 * i + 1]
    s[n_high] = source[n - 1] if n_low > n_high else s[n_high - 1]
    for i in range(n_high):
        d[i + 1] += ALPHA * (s[i] + s[i + 1])
    d[0] = d[1]
    d[n_high + 1] = d[n_high]
    for i in range(n_low):
        s[i] += BETA * (d[i] + d[i + 1])
    if n_low == n_high:
        s[n_high] = s[n_high - 1]
    for i in range(n_high):
        d[i + 1] += GAMMA * (s[i] + s[i + 1])
        target[n_low + i] = HIGH_GAIN * d[i + 1]
    d[0] = d[1]
    d[n_high + 1] = d[n_high]
    for i in range(n_low):
        target[i] = LOW_GAIN * (s[i] + DELTA * (d[i] + d[i + 1]))


@helper
def _inverse_row(source, target, s, d):  # type: ignore[no-untyped-def]
    """Undo `_forward_row`; scratch as there."""
    n = source.shape[0]
    n_high = n // 2
    n_low = n - n_high
    for i in range(n_high):
        d[i + 1] = LOW_GAIN * source[n_low + i]
    d[0] = d[1]
    d[n_high + 1] = d[n_high]
    for i in range(n_low):
        s[i] = HIGH_GAIN * source[i] - DELTA * (d[i] + d[i + 1])
    if n_low == n_high:
        s[n_high] = s[n_high - 1]
    for i in range(n_high):
        d[i + 1] -= GAMMA * (s[i] + s[i + 1])
    d[0] = d[1]
    d[n_high + 1] = d[n_high]
    for i in range(n_low):
        s[i] -= BETA * (d[i] + d[i + 1])
    if n_low == n_high:
        s[n_high] = s[n_high - 1]
    for i in range(n_high):
        target[2 * i] = s[i]
        target[2 * i + 1] = d[i + 1] - ALPHA * (s[i] + s[i + 1])
    if n_low > n_high:
        target[n - 1] = s[n_high]
