"""SOAP on the CPU, compiled: Adam in the eigenbasis of Shampoo's preconditioner."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tinc_codec.kernels import helper, kernel

if TYPE_CHECKING:
    import torch

_BETA1, _BETA2, _SHAMPOO_BETA = 0.95, 0.98, 0.98
_REFRESH_STEPS = 20
_RIDGE = np.float32(1e-6)
_EPSILON = 1e-12


class Layers(Protocol):
    """Where the matrices of a network lie in its parameters: a `TreeShape`, for one.

    Attributes
    ----------
    node_tables : sequence of ndarray of int64
        Rows [weights, biases, out, in] along the last axis.
    parameter_count, max_width : int
    """

    @property
    def node_tables(self) -> Sequence[np.ndarray]: ...
    @property
    def parameter_count(self) -> int: ...
    @property
    def max_width(self) -> int: ...


class Soap:
    """Turns gradients into directions; one matrix [out, in + 1] per layer and node.

    The bias is the matrix's last column. The moments live in the basis and turn with it. The basis
    follows the covariances by one power iteration and a QR decomposition; the matrices take turns,
    so that no step is longer than another.

    Parameters
    ----------
    shape : Layers
    models : int
        Independent models of that shape.

    References
    ----------
    SOAP, arXiv 2409.11321, algorithm 3.
    """

    def __init__(self, shape: Layers, models: int) -> None:
        rows = []
        left = right = entries = 0
        for table in shape.node_tables:
            for weight, bias, n_out, n_in in table.reshape(-1, 4).tolist():
                rows.append((weight, bias, n_out, n_in, left, right, entries))
                left += n_out * n_out
                right += (n_in + 1) ** 2
                entries += n_out * (n_in + 1)
        self._table = np.array(rows, dtype=np.int64)
        sizes = (entries, entries, left, right, left, right)
        self._state = tuple(np.zeros((models, size), np.float32) for size in sizes)
        *_, left_bases, right_bases = self._state
        for _, _, n_out, n_in, at_left, at_right, _ in rows:
            left_bases[:, at_left : at_left + n_out * n_out] = np.eye(n_out).ravel()
            right_bases[:, at_right : at_right + (n_in + 1) ** 2] = np.eye(n_in + 1).ravel()
        self._width = shape.max_width + 1
        self._directions = np.zeros((models, shape.parameter_count), np.float32)
        self._step = 0

    def __call__(self, gradients: "torch.Tensor") -> "torch.Tensor":
        """Return directions [model, parameter]; a buffer that the next call writes again."""
        import torch

        return torch.from_numpy(self.directions(gradients.numpy()))

    def directions(self, gradients: np.ndarray) -> np.ndarray:
        """Do the same for arrays of float32."""
        self._step += 1
        _advance(
            gradients, self._directions, *self._state, self._table, self._step, _REFRESH_STEPS,
            self._width,
        )  # fmt: skip
        return self._directions

    def stop(self, models: "torch.Tensor") -> None:
        """Take the momentum of some models away; bool [model]."""
        self._state[0][models.numpy()] = 0.0


@helper(fastmath=True)
def _multiply(a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a b."""
    for i in range(a.shape[0]):
        c[i, :] = np.float32(0)
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


@helper(fastmath=True)
def _multiply_first_transposed(a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a^T b."""
    c[:] = np.float32(0)
    for k in range(a.shape[0]):
        for i in range(a.shape[1]):
            for j in range(b.shape[1]):
                c[i, j] += a[k, i] * b[k, j]


@helper(fastmath=True)
def _multiply_second_transposed(a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a b^T."""
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            total = np.float32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[j, k]
            c[i, j] = total


@helper(fastmath=True)
def _turn(covariance, basis, scratch):  # type: ignore[no-untyped-def]
    """Multiply a basis by its covariance and make it orthonormal again, by Gram-Schmidt."""
    n = len(covariance)
    trace = np.float32(0)
    for i in range(n):
        trace += covariance[i, i]
    if not trace > np.float32(1e-30):
        return
    for j in range(n):
        for i in range(n):
            total = np.float32(0)
            for k in range(n):
                total += covariance[i, k] * basis[k, j]
            scratch[j, i] = total / trace + _RIDGE * basis[i, j]
    for j in range(n):
        # In float32, a second round is what makes small eigenvectors orthogonal.
        for _ in range(2):
            for k in range(j):
                total = np.float32(0)
                for i in range(n):
                    total += scratch[j, i] * scratch[k, i]
                for i in range(n):
                    scratch[j, i] -= total * scratch[k, i]
        norm = np.float32(0)
        for i in range(n):
            norm += scratch[j, i] * scratch[j, i]
        factor = np.float32(1) / np.sqrt(max(norm, np.float32(1e-37)))
        for i in range(n):
            scratch[j, i] *= factor
    for j in range(n):
        for i in range(n):
            basis[i, j] = scratch[j, i]


@helper(fastmath=True)
def _accumulate(covariance, rows, share):  # type: ignore[no-untyped-def]
    """Move a covariance towards rows^T rows by a share."""
    n = len(covariance)
    for a in range(n):
        for b in range(n):
            covariance[a, b] *= np.float32(1) - share
    for o in range(rows.shape[0]):
        for a in range(n):
            scaled = share * rows[o, a]
            for b in range(n):
                covariance[a, b] += scaled * rows[o, b]


@kernel(fastmath=True)
def _advance(  # type: ignore[no-untyped-def]
    gradients, directions, first_moments, second_moments, left_covariances, right_covariances,
    left_bases, right_bases, table, step, refresh, width
):  # fmt: skip
    """Advance all models; each array has one row per model."""
    for model in range(len(gradients)):
        _advance_model(
            gradients[model], directions[model], first_moments[model], second_moments[model],
            left_covariances[model], right_covariances[model], left_bases[model],
            right_bases[model], table, step, refresh, width,
        )  # fmt: skip


@helper(fastmath=True)
def _advance_model(  # type: ignore[no-untyped-def]
    gradient, direction, first, second, left_covariance, right_covariance, left_basis,
    right_basis, table, step, refresh, width
):  # fmt: skip
    """Advance all matrices; table [matrix, 7]: weight, bias, out, in, and places in the state."""
    scale = np.float32(np.sqrt(1 - _BETA2**step) / (1 - _BETA1**step))
    share = np.float32(1) if step == 1 else np.float32(1 - _SHAMPOO_BETA)
    share1 = np.float32(1 - _BETA1)
    share2 = np.float32(1 - _BETA2)
    buffers = np.empty((4, width * width), np.float32)
    for matrix in range(len(table)):
        weight, bias, n_out, n_in, at_left, at_right, at = table[matrix]
        columns = n_in + 1
        size = n_out * columns
        cl = left_covariance[at_left : at_left + n_out * n_out].reshape(n_out, n_out)
        cr = right_covariance[at_right : at_right + columns * columns].reshape(columns, columns)
        ql = left_basis[at_left : at_left + n_out * n_out].reshape(n_out, n_out)
        qr = right_basis[at_right : at_right + columns * columns].reshape(columns, columns)
        m = first[at : at + size].reshape(n_out, columns)
        v = second[at : at + size].reshape(n_out, columns)
        g = buffers[0, :size].reshape(n_out, columns)
        half = buffers[1, :size].reshape(n_out, columns)
        turned = buffers[2, :size].reshape(n_out, columns)
        transposed = buffers[1, :size].reshape(columns, n_out)
        for o in range(n_out):
            for i in range(n_in):
                g[o, i] = gradient[weight + o * n_in + i]
            g[o, n_in] = gradient[bias + o]
        for o in range(n_out):
            for i in range(columns):
                transposed[i, o] = g[o, i]
        if n_out > 1:
            _accumulate(cl, transposed, share)
        _accumulate(cr, g, share)
        if (step + matrix) % refresh == 0:
            _multiply(ql, m, half)
            _multiply_second_transposed(half, qr, turned)
            if n_out > 1:
                _turn(cl, ql, buffers[3, : n_out * n_out].reshape(n_out, n_out))
            _turn(cr, qr, buffers[3, : columns * columns].reshape(columns, columns))
            _multiply_first_transposed(ql, turned, half)
            _multiply(half, qr, m)
        _multiply_first_transposed(ql, g, half)
        _multiply(half, qr, turned)
        for o in range(n_out):
            for i in range(columns):
                value = turned[o, i]
                m[o, i] += share1 * (value - m[o, i])
                v[o, i] += share2 * (value * value - v[o, i])
                turned[o, i] = scale * m[o, i] / (np.sqrt(v[o, i]) + np.float32(_EPSILON))
        _multiply(ql, turned, half)
        _multiply_second_transposed(half, qr, g)
        for o in range(n_out):
            for i in range(n_in):
                direction[weight + o * n_in + i] = g[o, i]
            direction[bias + o] = g[o, n_in]
