"""A tree evaluated on the CPU: compiled, block by block, straight into the chunk's dtype.

The arithmetic is float32 throughout; sine is a polynomial, the same that the fit on a CPU
trains with. Kernels release the GIL and leave threads to the caller.
"""

import numpy as np
from numba import njit

_COMPILE = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": True}

TURNS_PER_RADIAN = np.float32(0.5 / np.pi)

TILE = 256
"""Voxels evaluated at once: the activations of a layer then stay in the nearest caches."""


@njit(**_COMPILE)
def affine(parameters, weight, bias, n_out, n_in, x, z, n):  # type: ignore[no-untyped-def]
    """Compute z = W x + b for n samples; x [n_in, n], z [n_out, n]; two outputs by four inputs."""
    o = 0
    while o + 2 <= n_out:
        z0 = z[o]
        z1 = z[o + 1]
        b0 = parameters[bias + o]
        b1 = parameters[bias + o + 1]
        r0 = weight + o * n_in
        r1 = r0 + n_in
        i = 0
        if n_in >= 4:
            p0 = parameters[r0]
            p1 = parameters[r0 + 1]
            p2 = parameters[r0 + 2]
            p3 = parameters[r0 + 3]
            q0 = parameters[r1]
            q1 = parameters[r1 + 1]
            q2 = parameters[r1 + 2]
            q3 = parameters[r1 + 3]
            x0 = x[0]
            x1 = x[1]
            x2 = x[2]
            x3 = x[3]
            for s in range(n):
                z0[s] = b0 + p0 * x0[s] + p1 * x1[s] + p2 * x2[s] + p3 * x3[s]
                z1[s] = b1 + q0 * x0[s] + q1 * x1[s] + q2 * x2[s] + q3 * x3[s]
            i = 4
        else:
            for s in range(n):
                z0[s] = b0
                z1[s] = b1
        while i + 4 <= n_in:
            p0 = parameters[r0 + i]
            p1 = parameters[r0 + i + 1]
            p2 = parameters[r0 + i + 2]
            p3 = parameters[r0 + i + 3]
            q0 = parameters[r1 + i]
            q1 = parameters[r1 + i + 1]
            q2 = parameters[r1 + i + 2]
            q3 = parameters[r1 + i + 3]
            x0 = x[i]
            x1 = x[i + 1]
            x2 = x[i + 2]
            x3 = x[i + 3]
            for s in range(n):
                z0[s] += p0 * x0[s] + p1 * x1[s] + p2 * x2[s] + p3 * x3[s]
                z1[s] += q0 * x0[s] + q1 * x1[s] + q2 * x2[s] + q3 * x3[s]
            i += 4
        while i < n_in:
            p0 = parameters[r0 + i]
            q0 = parameters[r1 + i]
            x0 = x[i]
            for s in range(n):
                z0[s] += p0 * x0[s]
                z1[s] += q0 * x0[s]
            i += 1
        o += 2
    if o < n_out:
        z0 = z[o]
        b0 = parameters[bias + o]
        r0 = weight + o * n_in
        for s in range(n):
            z0[s] = b0
        i = 0
        while i + 4 <= n_in:
            p0 = parameters[r0 + i]
            p1 = parameters[r0 + i + 1]
            p2 = parameters[r0 + i + 2]
            p3 = parameters[r0 + i + 3]
            x0 = x[i]
            x1 = x[i + 1]
            x2 = x[i + 2]
            x3 = x[i + 3]
            for s in range(n):
                z0[s] += p0 * x0[s] + p1 * x1[s] + p2 * x2[s] + p3 * x3[s]
            i += 4
        while i < n_in:
            p0 = parameters[r0 + i]
            x0 = x[i]
            for s in range(n):
                z0[s] += p0 * x0[s]
            i += 1


@njit(inline="always", **_COMPILE)
def fraction_of_turn(z, turns):  # type: ignore[no-untyped-def]
    """Return z * turns less its nearest integer, in [-1/2, 1/2], whatever finite z is."""
    t = z * turns
    return t - np.rint(t)


@njit(inline="always", **_COMPILE)
def sine_of_turn(f):  # type: ignore[no-untyped-def]
    """Evaluate sin(2 pi f) for |f| <= 1/2; a minimax polynomial, error below 1e-6 in float32."""
    s = f * f
    p = np.float32(41.205394744873047) - np.float32(12.271262168884277) * s
    p = p * s - np.float32(76.580101013183594)
    p = p * s + np.float32(81.596183776855469)
    p = p * s - np.float32(41.341423034667969)
    return f * (p * s + np.float32(6.283182621002197))


@njit(**_COMPILE)
def sine(z, w0, y, n_rows, n):  # type: ignore[no-untyped-def]
    """Compute y = sin(w0 z) for z, y [n_rows, n]."""
    turns = w0 * TURNS_PER_RADIAN
    for o in range(n_rows):
        zr = z[o]
        yr = y[o]
        for s in range(n):
            yr[s] = sine_of_turn(fraction_of_turn(zr[s], turns))


@njit(**_COMPILE)
def evaluate_leaves(  # type: ignore[no-untyped-def]
    parameters, paths, origins, extents, coordinate_map, axes, w0, width, first, last, gain, offset,
    mapping, is_integer, out
):  # fmt: skip
    """Evaluate leaves first to last - 1 of one volume into out [Z, Y, X] of any real dtype.

    The network's output f becomes t = gain * f + offset, and that the data's value; see `store`.
    """
    n_layers = paths.shape[1]
    a = np.empty((width, TILE), np.float32)
    z = np.empty((width, TILE), np.float32)
    for leaf in range(first, last):
        depth, height, length = extents[leaf]
        for x_start in range(0, length, TILE):
            run = min(TILE, length - x_start)
            rows = TILE // run
            for row_start in range(0, depth * height, rows):
                row_stop = min(row_start + rows, depth * height)
                n = (row_stop - row_start) * run
                place(
                    a,
                    axes,
                    origins[leaf],
                    coordinate_map,
                    x_start,
                    run,
                    row_start,
                    row_stop,
                    height,
                )
                for k in range(n_layers):
                    weight, bias, n_out, n_in = paths[leaf, k]
                    affine(parameters, weight, bias, n_out, n_in, a, z, n)
                    if k < n_layers - 1:
                        sine(z, w0, a, n_out, n)
                oz, oy, ox = origins[leaf]
                for row in range(row_start, row_stop):
                    target = out[oz + row // height, oy + row % height]
                    begin = (row - row_start) * run
                    store(
                        z[0, begin : begin + run], gain, offset, mapping, is_integer,
                        target[ox + x_start : ox + x_start + run],
                    )  # fmt: skip


@njit(**_COMPILE)
def place(a, axes, origin, coordinate_map, x_start, run, row_start, row_stop, height):  # type: ignore[no-untyped-def]
    """Write the coordinates of rows of a leaf into a [axis, sample]."""
    for k in range(axes.shape[0]):
        axis = axes[k]
        step = coordinate_map[0, axis]
        shift = coordinate_map[1, axis]
        target = a[k]
        for row in range(row_start, row_stop):
            begin = (row - row_start) * run
            if axis == 2:
                first = origin[2] + x_start
                for s in range(run):
                    target[begin + s] = np.float32(first + s) * step - shift
            else:
                position = row % height if axis == 1 else row // height
                value = np.float32(origin[axis] + position) * step - shift
                for s in range(run):
                    target[begin + s] = value


@njit(**_COMPILE)
def store(values, gain, offset, mapping, is_integer, out):  # type: ignore[no-untyped-def]
    """Twin of `volume.chunk.denormalise` for one row: clip, map in float64, round, clip."""
    scale, low, span, value_min, value_max = mapping
    inverse = 1.0 / scale
    for s in range(values.shape[0]):
        t = min(max(values[s] * gain + offset, np.float32(0)), np.float32(1))
        value = (np.float64(t) * span + low) * inverse
        if is_integer:
            value = np.rint(value)
        out[s] = min(max(value, value_min), value_max)
