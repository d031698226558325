"""Second-order steps for a tree: least squares for the heads, Gauss-Newton for all weights.

A leaf's voxels depend on the weights along its path only, so that the normal equations have the
tree's own structure: eliminating the leaves' weights first, then their parents', leaves small
dense systems and no fill-in.
"""

from collections.abc import Iterator

import numpy as np

from tinc_codec.model.octree_mlp import TreeShape

_HEAD_RIDGE = 1e-6
_DAMPING = 0.1
_LEAST_DAMPING, _MOST_DAMPING = 1e-6, 1e4
_RIDGE = 1e-9


class _Leaf:
    """One leaf's path: its activations, and its voxels' dependence on the path's weights."""

    def __init__(self, shape: TreeShape, leaf: int) -> None:
        self.path = shape.leaf_paths[leaf]
        self._w0 = np.float32(shape.w0)
        extent = shape.leaf_extents[leaf]
        positions = np.stack(np.meshgrid(*map(np.arange, extent), indexing="ij"), -1)
        step, shift = shape.coordinate_map
        coordinates = (positions.reshape(-1, 3) + shape.leaf_origins[leaf]) * step - shift
        self.coordinates = coordinates[:, list(shape.axes)].astype(np.float32)
        self.voxels = len(self.coordinates)

    def activations(self, parameters: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the input of every layer, and the slope of every sine, each [voxel, width]."""
        inputs, slopes = [self.coordinates], []
        for weight, bias, n_out, n_in in self.path[:-1]:
            matrix = parameters[weight : weight + n_out * n_in].reshape(n_out, n_in)
            angle = self._w0 * (inputs[-1] @ matrix.T + parameters[bias : bias + n_out])
            inputs.append(np.sin(angle))
            slopes.append(self._w0 * np.cos(angle))
        return inputs, slopes

    def output(self, parameters: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Apply the head to the last layer's activations."""
        weight, bias, _, n_in = self.path[-1]
        return last @ parameters[weight : weight + n_in] + parameters[bias]

    def jacobian(
        self, parameters: np.ndarray, inputs: list[np.ndarray], slopes: list[np.ndarray]
    ) -> np.ndarray:
        """Return float32 [voxel, weight of the path]; layer after layer, weights then biases."""
        parts = []
        d = np.ones((self.voxels, 1), np.float32)
        for k in range(len(self.path) - 1, -1, -1):
            weight, _, n_out, n_in = self.path[k]
            outer = d[:, :, None] * inputs[k][:, None, :]
            parts.append(np.concatenate([outer.reshape(self.voxels, -1), d], axis=1))
            if k:
                matrix = parameters[weight : weight + n_out * n_in].reshape(n_out, n_in)
                d = (d @ matrix) * slopes[k - 1]
        return np.concatenate(parts[::-1], axis=1)


def with_best_heads(shape: TreeShape, blocks: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Replace the linear heads by the least-squares solutions; blocks [leaf, voxel]."""
    solved = parameters.copy()
    for index in range(shape.leaf_count):
        leaf = _Leaf(shape, index)
        inputs, _ = leaf.activations(parameters)
        features = np.concatenate([inputs[-1], np.ones((leaf.voxels, 1))], axis=1)
        normal = features.T @ features + _HEAD_RIDGE * leaf.voxels * np.eye(features.shape[1])
        head = np.linalg.solve(normal, features.T @ blocks[index, : leaf.voxels])
        weight, bias, _, n_in = leaf.path[-1]
        solved[weight : weight + n_in] = head[:-1]
        solved[bias] = head[-1]
    return solved


def improve(
    shape: TreeShape, blocks: np.ndarray, parameters: np.ndarray, steps: int
) -> Iterator[np.ndarray]:
    """Take Gauss-Newton steps with Levenberg's damping on all voxels; yield the weights of each.

    Parameters
    ----------
    shape : TreeShape
    blocks : ndarray of float32
        Shape (leaf, voxel).
    parameters : ndarray of float32
        Shape (parameter,).
    steps : int
    """
    leaves = [_Leaf(shape, index) for index in range(shape.leaf_count)]
    places = [_places(shape, level) for level in range(shape.levels)]
    damping = _DAMPING
    for _ in range(steps):
        systems, loss = [], 0.0
        for leaf, values in zip(leaves, blocks, strict=True):
            inputs, slopes = leaf.activations(parameters)
            error = leaf.output(parameters, inputs[-1]) - values[: leaf.voxels]
            jacobian = leaf.jacobian(parameters, inputs, slopes)
            extended = np.concatenate([jacobian, error[:, None]], axis=1)
            systems.append((extended.T @ extended).astype(np.float64))
            loss += float(error @ error)
        while damping < _MOST_DAMPING:
            step = np.zeros_like(parameters)
            _solve(shape.children, places, systems, damping, step)
            moved = parameters - step
            if _loss(leaves, blocks, moved) < loss:
                parameters = moved
                damping = max(damping * 0.4, _LEAST_DAMPING)
                break
            damping *= 4.0
        yield parameters


def _places(shape: TreeShape, level: int) -> list[np.ndarray]:
    """Per node of a level, where its weights lie, in the order of `_Leaf.jacobian`."""
    places = []
    for rows in shape.node_tables[level]:
        parts = []
        for weight, bias, n_out, n_in in rows:
            parts += [np.arange(weight, weight + n_out * n_in), np.arange(bias, bias + n_out)]
        places.append(np.concatenate(parts))
    return places


def _loss(leaves: list[_Leaf], blocks: np.ndarray, parameters: np.ndarray) -> float:
    total = 0.0
    for leaf, values in zip(leaves, blocks, strict=True):
        error = leaf.output(parameters, leaf.activations(parameters)[0][-1])
        error -= values[: leaf.voxels]
        total += float(error @ error)
    return total


def _solve(
    children: list[int],
    places: list[list[np.ndarray]],
    systems: list[np.ndarray],
    damping: float,
    step: np.ndarray,
) -> None:
    """Solve the damped normal equations for `step`.

    `systems` holds per leaf the matrix of its path with the gradient as last row and column.
    """
    eliminated = []
    diagonals = [np.diag(system).copy() for system in systems]
    for level in range(len(places) - 1, -1, -1):
        solutions = []
        for index, own in enumerate(places[level]):
            above = len(systems[index]) - 1 - len(own)
            system = systems[index]
            inner = np.arange(above, above + len(own))
            outer = np.r_[np.arange(above), above + len(own)]
            block = system[np.ix_(inner, inner)]
            damped = damping * diagonals[index][inner] + _RIDGE * diagonals[index].max()
            solution = np.linalg.solve(block + np.diag(damped), system[np.ix_(inner, outer)])
            solutions.append((solution, system, inner, outer))
        eliminated.append(solutions)
        if level:
            reduced = [
                system[np.ix_(outer, outer)] - system[np.ix_(outer, inner)] @ solution
                for solution, system, inner, outer in solutions
            ]
            kept = [
                diagonal[outer]
                for (_, _, _, outer), diagonal in zip(solutions, diagonals, strict=True)
            ]
            count = children[level - 1]
            systems = [sum(reduced[i : i + count]) for i in range(0, len(reduced), count)]
            diagonals = [sum(kept[i : i + count]) for i in range(0, len(kept), count)]
    ancestors: list[np.ndarray] = [np.zeros(0)]
    for level, solutions in enumerate(reversed(eliminated)):
        if level:
            ancestors = [values for values in ancestors for _ in range(children[level - 1])]
        below = []
        for index, (solution, _, _, _) in enumerate(solutions):
            own = solution[:, -1] - solution[:, :-1] @ ancestors[index]
            step[places[level][index]] = own
            below.append(np.concatenate([ancestors[index], own]))
        ancestors = below
