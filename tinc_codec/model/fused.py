"""A tree evaluated on the CPU: compiled, block by block, straight into the chunk's dtype.

The arithmetic is float32 throughout; sine is a polynomial, the same that the fit on a CPU
trains with. Kernels release the GIL and leave threads to the caller.
"""

import numpy as np

from tinc_codec.kernels import helper, kernel

# All of fastmath but reassociation: the order of operations is as written, so that a voxel has the
# same bits in whatever part of a chunk, and in whatever lane of a vector, it is computed.
FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "afn"}
TURNS_PER_RADIAN = np.float32(0.5 / np.pi)

TILE = 256
"""Voxels evaluated at once: the activations of a layer then stay in the nearest caches."""


@kernel(fastmath=FAST)
def affine(parameters, weight, bias, n_out, n_in, x, z, n):  # type: ignore[no-untyped-def]
    """Compute z = W x + b for n samples; x [n_in, n], z [n_out, n].

    Four outputs by four inputs at a time: sixteen products for each eight rows loaded.
    """
    o = 0
    while o + 4 <= n_out:
        _four_rows(parameters, weight + o * n_in, bias + o, n_in, x, z[o : o + 4], n)
        o += 4
    while o < n_out:
        _one_row(parameters, weight + o * n_in, bias + o, n_in, x, z[o], n)
        o += 1


@helper(fastmath=FAST)
def _four_rows(parameters, weight, bias, n_in, x, z, n):  # type: ignore[no-untyped-def]
    z0 = z[0]
    z1 = z[1]
    z2 = z[2]
    z3 = z[3]
    b0 = parameters[bias]
    b1 = parameters[bias + 1]
    b2 = parameters[bias + 2]
    b3 = parameters[bias + 3]
    r0 = weight
    r1 = r0 + n_in
    r2 = r1 + n_in
    r3 = r2 + n_in
    first = x[0]
    a0 = parameters[r0]
    a1 = parameters[r1]
    a2 = parameters[r2]
    a3 = parameters[r3]
    i = 1
    if n_in > 1:
        # The sums start within the first products: a pass over z less.
        second = x[1]
        c0 = parameters[r0 + 1]
        c1 = parameters[r1 + 1]
        c2 = parameters[r2 + 1]
        c3 = parameters[r3 + 1]
        for s in range(n):
            u = first[s]
            v = second[s]
            z0[s] = b0 + a0 * u + c0 * v
            z1[s] = b1 + a1 * u + c1 * v
            z2[s] = b2 + a2 * u + c2 * v
            z3[s] = b3 + a3 * u + c3 * v
        i = 2
    else:
        for s in range(n):
            u = first[s]
            z0[s] = b0 + a0 * u
            z1[s] = b1 + a1 * u
            z2[s] = b2 + a2 * u
            z3[s] = b3 + a3 * u
    while i + 4 <= n_in:
        x0 = x[i]
        x1 = x[i + 1]
        x2 = x[i + 2]
        x3 = x[i + 3]
        a0 = parameters[r0 + i]
        a1 = parameters[r0 + i + 1]
        a2 = parameters[r0 + i + 2]
        a3 = parameters[r0 + i + 3]
        c0 = parameters[r1 + i]
        c1 = parameters[r1 + i + 1]
        c2 = parameters[r1 + i + 2]
        c3 = parameters[r1 + i + 3]
        d0 = parameters[r2 + i]
        d1 = parameters[r2 + i + 1]
        d2 = parameters[r2 + i + 2]
        d3 = parameters[r2 + i + 3]
        e0 = parameters[r3 + i]
        e1 = parameters[r3 + i + 1]
        e2 = parameters[r3 + i + 2]
        e3 = parameters[r3 + i + 3]
        for s in range(n):
            t = x0[s]
            u = x1[s]
            v = x2[s]
            w = x3[s]
            z0[s] = z0[s] + a0 * t + a1 * u + a2 * v + a3 * w
            z1[s] = z1[s] + c0 * t + c1 * u + c2 * v + c3 * w
            z2[s] = z2[s] + d0 * t + d1 * u + d2 * v + d3 * w
            z3[s] = z3[s] + e0 * t + e1 * u + e2 * v + e3 * w
        i += 4
    while i < n_in:
        x0 = x[i]
        a0 = parameters[r0 + i]
        a1 = parameters[r1 + i]
        a2 = parameters[r2 + i]
        a3 = parameters[r3 + i]
        for s in range(n):
            t = x0[s]
            z0[s] += a0 * t
            z1[s] += a1 * t
            z2[s] += a2 * t
            z3[s] += a3 * t
        i += 1


@helper(fastmath=FAST)
def _one_row(parameters, weight, bias, n_in, x, z, n):  # type: ignore[no-untyped-def]
    b = parameters[bias]
    for s in range(n):
        z[s] = b
    i = 0
    while i + 4 <= n_in:
        a0 = parameters[weight + i]
        a1 = parameters[weight + i + 1]
        a2 = parameters[weight + i + 2]
        a3 = parameters[weight + i + 3]
        x0 = x[i]
        x1 = x[i + 1]
        x2 = x[i + 2]
        x3 = x[i + 3]
        for s in range(n):
            z[s] = z[s] + a0 * x0[s] + a1 * x1[s] + a2 * x2[s] + a3 * x3[s]
        i += 4
    while i < n_in:
        a0 = parameters[weight + i]
        x0 = x[i]
        for s in range(n):
            z[s] += a0 * x0[s]
        i += 1


@kernel(inline="always", fastmath=FAST)
def fraction_of_turn(z, turns):  # type: ignore[no-untyped-def]
    """Return z * turns less its nearest integer, in [-1/2, 1/2], whatever finite z is."""
    t = z * turns
    return t - np.rint(t)


@kernel(inline="always", fastmath=FAST)
def sine_of_turn(f):  # type: ignore[no-untyped-def]
    """Evaluate sin(2 pi f) for |f| <= 1/2; a minimax polynomial, error below 1e-6 in float32."""
    s = f * f
    p = np.float32(41.205394744873047) - np.float32(12.271262168884277) * s
    p = p * s - np.float32(76.580101013183594)
    p = p * s + np.float32(81.596183776855469)
    p = p * s - np.float32(41.341423034667969)
    return f * (p * s + np.float32(6.283182621002197))


@helper(fastmath=FAST)
def sine(z, w0, y, n_rows, n):  # type: ignore[no-untyped-def]
    """Compute y = sin(w0 z) for z, y [n_rows, n]."""
    turns = w0 * TURNS_PER_RADIAN
    for o in range(n_rows):
        zr = z[o]
        yr = y[o]
        for s in range(n):
            yr[s] = sine_of_turn(fraction_of_turn(zr[s], turns))


@kernel(fastmath=FAST)
def evaluate_leaves(  # type: ignore[no-untyped-def]
    parameters, paths, origins, extents, coordinates, axes, w0, width, first, last, gain, offset,
    mapping, is_integer, out
):  # fmt: skip
    """Evaluate leaves first to last - 1 of one volume into out [Z, Y, X] of any real dtype.

    coordinates [axis, position] are those of out's positions, from `coordinate_table`. The
    network's output f becomes t = gain * f + offset, and that the data's value; see `store`. Where
    `mapping` is None, t itself is added to `out`.
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
                    coordinates,
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
                    values = z[0, begin : begin + run]
                    stored = target[ox + x_start : ox + x_start + run]
                    if mapping is None:
                        for s in range(run):
                            stored[s] += values[s] * gain + offset
                    else:
                        store(values, gain, offset, mapping, is_integer, stored)


@kernel(fastmath=FAST)
def coordinate_table(places, coordinate_map):  # type: ignore[no-untyped-def]
    """Give the network's coordinates of places in voxels, float32 [axis, position]."""
    out = np.empty_like(places)
    for axis in range(places.shape[0]):
        step = coordinate_map[0, axis]
        shift = coordinate_map[1, axis]
        for i in range(places.shape[1]):
            out[axis, i] = places[axis, i] * step - shift
    return out


@kernel(fastmath=FAST)
def place(a, axes, origin, coordinates, x_start, run, row_start, row_stop, height):  # type: ignore[no-untyped-def]
    """Write the coordinates of rows of a leaf into a [axis, sample]."""
    for k in range(axes.shape[0]):
        axis = axes[k]
        line = coordinates[axis]
        target = a[k]
        for row in range(row_start, row_stop):
            begin = (row - row_start) * run
            if axis == 2:
                first = origin[2] + x_start
                for s in range(run):
                    target[begin + s] = line[first + s]
            else:
                position = row % height if axis == 1 else row // height
                value = line[origin[axis] + position]
                for s in range(run):
                    target[begin + s] = value


@kernel(fastmath=FAST)
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


@kernel(fastmath=FAST)
def store_rows(values, mapping, is_integer, first, last, out):  # type: ignore[no-untyped-def]
    """Store rows first to last - 1 of t, float32 [B, Z, Y, X], as the data's values."""
    _, depth, height, _ = values.shape
    for row in range(first, last):
        plane = row // height
        store(
            values[plane // depth, plane % depth, row % height], np.float32(1), np.float32(0),
            mapping, is_integer, out[plane // depth, plane % depth, row % height],
        )  # fmt: skip
