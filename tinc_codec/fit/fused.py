"""Loss and gradient of a tree on the CPU: forward and backward in one compiled pass per leaf.

Eager torch spends most of a step on dispatch and memory traffic between tiny operations; here a
leaf's samples stay in the nearest caches from the coordinates to the gradient.
`fit.gradient` splits the tasks over threads; results do not depend on how many.
"""

import numpy as np

from tinc_codec.kernels import helper, kernel
from tinc_codec.model.fused import TURNS_PER_RADIAN, affine, fraction_of_turn, sine_of_turn


@helper(fastmath=True)
def sine_and_slope(z, w0, y, slope, n_rows, n):  # type: ignore[no-untyped-def]
    """Compute y = sin(w0 z) and slope = w0 cos(w0 z); all [n_rows, n]."""
    turns = w0 * TURNS_PER_RADIAN
    for o in range(n_rows):
        zr = z[o]
        yr = y[o]
        cr = slope[o]
        for s in range(n):
            f = fraction_of_turn(zr[s], turns)
            yr[s] = sine_of_turn(f)
            t = f * f
            q = np.float32(58.794040679931641) - np.float32(21.0767822265625) * t
            q = q * t - np.float32(85.272399902343750)
            q = q * t + np.float32(64.928726196289062)
            q = q * t - np.float32(19.738983154296875)
            cr[s] = (q * t + np.float32(1)) * w0


@helper(fastmath=True)
def add_weight_gradient(gradient, weight, bias, n_out, n_in, x, d, n):  # type: ignore[no-untyped-def]
    """Add d x^T to a layer's weights and the sum of d to its biases; x [n_in, n], d [n_out, n]."""
    zero = np.float32(0)
    for o in range(n_out):
        total = zero
        dr = d[o]
        for s in range(n):
            total += dr[s]
        gradient[bias + o] += total
    # Two outputs by four inputs, the last output twice where their number is odd.
    for o in range(0, n_out, 2):
        pair = o + 1 < n_out
        d0 = d[o]
        d1 = d[o + 1] if pair else d0
        row = weight + o * n_in
        i = 0
        while i + 4 <= n_in:
            x0 = x[i]
            x1 = x[i + 1]
            x2 = x[i + 2]
            x3 = x[i + 3]
            t0 = zero
            t1 = zero
            t2 = zero
            t3 = zero
            u0 = zero
            u1 = zero
            u2 = zero
            u3 = zero
            for s in range(n):
                e = d0[s]
                f = d1[s]
                t0 += e * x0[s]
                t1 += e * x1[s]
                t2 += e * x2[s]
                t3 += e * x3[s]
                u0 += f * x0[s]
                u1 += f * x1[s]
                u2 += f * x2[s]
                u3 += f * x3[s]
            gradient[row + i] += t0
            gradient[row + i + 1] += t1
            gradient[row + i + 2] += t2
            gradient[row + i + 3] += t3
            if pair:
                gradient[row + n_in + i] += u0
                gradient[row + n_in + i + 1] += u1
                gradient[row + n_in + i + 2] += u2
                gradient[row + n_in + i + 3] += u3
            i += 4
        while i < n_in:
            x0 = x[i]
            t0 = zero
            u0 = zero
            for s in range(n):
                t0 += d0[s] * x0[s]
                u0 += d1[s] * x0[s]
            gradient[row + i] += t0
            if pair:
                gradient[row + n_in + i] += u0
            i += 1


@helper(fastmath=True)
def input_gradient(parameters, weight, n_out, n_in, d, slope, dx, transposed, n):  # type: ignore[no-untyped-def]
    """Compute dx = (W^T d) * slope, the gradient before the sine below; dx [n_in, n].

    `transposed` is scratch for W^T and as many zeros as it has rows.
    """
    for i in range(n_in):
        for o in range(n_out):
            transposed[i * n_out + o] = parameters[weight + o * n_in + i]
        transposed[n_in * n_out + i] = np.float32(0)
    affine(transposed, np.int64(0), n_in * n_out, n_in, n_out, d, dx, n)
    for i in range(n_in):
        row = dx[i]
        c = slope[i]
        for s in range(n):
            row[s] *= c[s]


@kernel(fastmath=True)
def gather(  # type: ignore[no-untyped-def]
    x, target, importance, values, weights, extent, origin, coordinate_map, axes, start, stride, n
):
    """Pick n voxels start, start + stride, ... (modulo the block): coordinates, values, weights."""
    height = extent[1]
    length = extent[2]
    count = extent[0] * height * length
    index = start
    for s in range(n):
        target[s] = values[index]
        if weights.shape[0] > 0:
            importance[s] = np.float32(weights[index])
        row = index // length
        depth = row // height
        for k in range(axes.shape[0]):
            axis = axes[k]
            if axis == 2:
                position = index - row * length
            elif axis == 1:
                position = row - depth * height
            else:
                position = depth
            x[k, s] = (
                np.float32(origin[axis] + position) * coordinate_map[0, axis]
                - coordinate_map[1, axis]
            )
        index += stride
        if index >= count:
            index -= count


@kernel(fastmath=True)
def loss_and_gradient(  # type: ignore[no-untyped-def]
    parameters, blocks, weights, scales, paths, origins, extents, coordinate_map, axes, w0, width,
    starts, strides, samples, root_size, task_first, task_last, tasks_per_model, gradient,
    root_gradient, loss
):  # fmt: skip
    """Handle tasks task_first to task_last - 1; a task is one model's leaves below one child.

    parameters [model, parameter]; blocks [model, leaf, voxel] float32; weights the same shape in
    uint8, or [0, 0, 0]; scales [model] float32, 1 / number of voxels that count; starts, strides
    [leaf] int64. Adds to gradient [model, parameter], sets root_gradient [task, root_size] (the
    root belongs to all tasks of a model) and loss [task], the task's part of the mean square error.
    """
    n_layers = paths.shape[1]
    per_task = paths.shape[0] // tasks_per_model
    x = np.empty((n_layers, width, samples), np.float32)
    slopes = np.empty((n_layers, width, samples), np.float32)
    d = np.empty((width, samples), np.float32)
    d_next = np.empty((width, samples), np.float32)
    transposed = np.empty((width + 1) * width, np.float32)
    target = np.empty(samples, np.float32)
    importance = np.ones(samples, np.float32)
    no_weights = np.empty(0, np.uint8)
    for task in range(task_first, task_last):
        model = task // tasks_per_model
        first_leaf = (task % tasks_per_model) * per_task
        p = parameters[model]
        own = gradient[model]
        root = root_gradient[task]
        root[:] = np.float32(0)
        task_loss = 0.0
        for leaf in range(first_leaf, first_leaf + per_task):
            count = extents[leaf, 0] * extents[leaf, 1] * extents[leaf, 2]
            n = min(samples, count)
            if n == 0:
                continue
            gather(
                x[0], target, importance, blocks[model, leaf],
                weights[model, leaf] if weights.shape[0] > 0 else no_weights,
                extents[leaf], origins[leaf], coordinate_map, axes, starts[leaf], strides[leaf], n,
            )  # fmt: skip
            for k in range(n_layers):
                weight, bias, n_out, n_in = paths[leaf, k]
                affine(p, weight, bias, n_out, n_in, x[k], d, n)
                if k < n_layers - 1:
                    sine_and_slope(d, w0, x[k + 1], slopes[k + 1], n_out, n)
            error = d[0]
            factor = scales[model] * np.float32(count) / np.float32(n)
            leaf_loss = np.float32(0)
            for s in range(n):
                e = error[s] - target[s]
                weighted = e * importance[s]
                leaf_loss += e * weighted
                error[s] = np.float32(2) * factor * weighted
            task_loss += factor * leaf_loss
            d_now = d
            d_below = d_next
            for j in range(n_layers):
                k = n_layers - 1 - j
                weight, bias, n_out, n_in = paths[leaf, k]
                into = root if weight < root_size else own
                add_weight_gradient(into, weight, bias, n_out, n_in, x[k], d_now, n)
                if k > 0:
                    input_gradient(p, weight, n_out, n_in, d_now, slopes[k], d_below, transposed, n)
                    d_now, d_below = d_below, d_now
        loss[task] = task_loss
