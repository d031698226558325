"""A second reader of the lattice section, written from docs/format.md §14 alone; slow and plain.

What the document says is rejected is a `ValueError`, and where a section ends within its fields an
`EOFError`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from tests.mask_reference import Coder

Batch = tuple[int, int, int, int]
Voxel = tuple[int, int, int]

# §14.3, in units of 1/20000.
TAPS: dict[Voxel, int] = {
    (0, 0, -1): 1, (0, -1, 0): 1, (-1, 0, 0): 1, (0, -1, -1): -1, (0, -1, 1): 0, (-1, 0, -1): -1,
    (-1, -1, 0): -1, (-1, 0, 1): 0, (-1, 1, 0): 0, (0, 0, -2): 0, (0, -2, 0): 0, (-2, 0, 0): 0,
    (-1, -1, -1): 1, (-1, -1, 1): 0, (-1, 1, -1): 0, (-1, 1, 1): 0, (0, -1, -2): 0,
    (0, -2, -1): 0, (0, -2, 1): 0,
}  # fmt: skip
MISSES: dict[Voxel, int] = {
    (0, 0, -1): 2, (0, -1, 0): 2, (-1, 0, 0): 2, (0, -1, -1): 1, (0, -1, 1): 1, (-1, 0, -1): 1,
    (-1, -1, 0): 1, (-1, 0, 1): 1, (-1, 1, 0): 1, (0, 0, -2): 1, (0, -2, 0): 1, (-2, 0, 0): 1,
}  # fmt: skip
MOST_PLAIN_ONES = 25


@dataclass
class ReferenceLattice:
    """A parsed section; `indices` [volume, z, y, x]."""

    origin: int | float
    step: int | float
    planes: int
    slabs: int
    below: int
    top: int
    indices: np.ndarray
    escapes: int
    largest_shift: int


def level(total: int) -> int:
    """§11.2."""
    if total < 4:
        return total
    e = total.bit_length() - 3
    return 4 + 2 * e + (total >> (e + 1)) % 2


def limited(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


def take_varint(data: bytes, at: int) -> tuple[int, int]:
    """§1: the number, and the position behind it."""
    value = 0
    for k in range(9):
        if at + k >= len(data):
            raise EOFError("varint")
        value |= (data[at + k] & 127) << (7 * k)
        if data[at + k] < 128:
            if k and data[at + k] == 0:
                raise ValueError("a varint that is longer than it need be")
            return value, at + k + 1
    raise ValueError("a varint of more than 9 bytes")


class Estimates(dict):
    """§14.4: `[P, n]` of each context met so far."""

    def __missing__(self, key):
        self[key] = [2**21, 0]
        return self[key]

    def decide(self, coder: Coder, context: int) -> int:
        p, n = self[context]
        decision = coder.decide(limited(p >> 6, 1, 65535))
        p += (((2**22 - 1) * decision - p) * (131072 // (2 * n + 3))) >> 16
        self[context] = [p, min(n + 1, 255)]
        return decision


class Slab:
    """The planes of one slab; `starts` says at which of them a volume starts."""

    def __init__(self, code: bytes, finite: np.ndarray, starts: list[int], top: int):
        if code[:4] == b"\xff" * 4:
            raise ValueError("the code's first four bytes are all 255")
        self.code, self.finite, self.top = code, finite, top
        self.coder = Coder(code)
        self.unary, self.remainders, self.signs = Estimates(), Estimates(), Estimates()
        self.weights = [20000 * sign for sign in TAPS.values()]
        self.sums = {}
        self.escapes = self.largest_shift = 0
        self.indices = np.zeros(finite.shape, np.int64)
        for start, end in pairwise([*starts, len(finite)]):
            self.read_volume(start, end)
        taken = self.coder.taken
        if not taken - 4 <= len(code) <= taken:
            raise ValueError("the code's length does not fit its content")

    def read_volume(self, start: int, end: int) -> None:
        self.v = self.indices[start:end].tolist()
        self.m = np.zeros_like(self.indices[start:end]).tolist()
        for z, y, x in np.ndindex(self.finite[start:end].shape):
            self.v[z][y][x], self.m[z][y][x] = self.read_voxel(
                (z, y, x), bool(self.finite[start + z, y, x])
            )
        self.indices[start:end] = self.v

    def index_near(self, voxel: Voxel, offset: Voxel) -> int:
        """`v` of a neighbour, or of what stands for it."""
        height, width = self.finite.shape[1:]
        z, y, x = (n + d for n, d in zip(voxel, offset, strict=True))
        if z < 0:
            z, y = (0, voxel[1] - 1) if voxel[0] == 0 else (0, y)
        y = min(y, height - 1)
        if y < 0:
            if z == 0:
                return 0
            z, y = z - 1, 0
        if x < 0:
            if y > 0:
                y, x = y - 1, 0
            elif z > 0:
                z, x = z - 1, 0
            else:
                return 0
        return self.v[z][y][min(x, width - 1)]

    def miss_near(self, voxel: Voxel, offset: Voxel) -> int:
        """`m` of a neighbour, or of what stands for it."""
        height, width = self.finite.shape[1:]
        z, y, x = (n + d for n, d in zip(voxel, offset, strict=True))
        if z < 0:
            z, y = (0, voxel[1] - 1) if voxel[0] == 0 else (0, y)
        return self.m[z][y][x] if 0 <= y < height and 0 <= x < width else 0

    def read_voxel(self, voxel: Voxel, finite: bool) -> tuple[int, int]:
        """Predict and decode; index and miss."""
        near = [self.index_near(voxel, offset) for offset in TAPS]
        b = sum(near[:3]) // 3
        f = [n - b for n in near]
        weighted = sum(w * n for w, n in zip(self.weights, f, strict=True))
        g = limited(16 * b + (weighted >> 12), -16, 16 * self.top + 16)
        texture = sum((16 * f[i] > g - 16 * b) << i for i in range(9))
        off = sum(factor * self.miss_near(voxel, at) for at, factor in MISSES.items())
        rough = (
            abs(f[0] - f[3]) + abs(f[1] - f[3]) + abs(f[1] - f[4]) + abs(f[2] - f[5])
            + abs(f[2] - f[6]) + abs(f[2] - f[7]) + abs(f[2] - f[8]) + abs(f[0] - f[5])
            + abs(f[1] - f[6])
        )  # fmt: skip
        pair = 8 * texture + min(level(off) >> 1, 7)
        total, count = self.sums.get(pair, (0, 0))
        r = limited(g + total // count if count else g, 0, 16 * self.top)
        p = (r + 8) >> 4
        if not finite:
            return p, 0
        kind = (p != 0) + 2 * (near[0] == near[1] == near[2])
        v = self.read_index(p, r - 16 * p, off + rough, kind)
        d = 16 * v - g
        total, count = total + d, count + 1
        self.sums[pair] = (total // 2, 64) if count == 128 else (total, count)
        n = sum(k * k for k in f)
        if d != 0 and n > 0:
            s = (4096 * d) // (n + 16)
            self.weights = [
                limited(w + ((s * k) >> 3), -(2**17), 2**17)
                for w, k in zip(self.weights, f, strict=True)
            ]
        return v, abs(v - p)

    def read_index(self, p: int, q: int, activity: int, kind: int) -> int:
        """§14.4."""
        context = min(level(activity), 63)
        h = 0
        while (activity // 24) >> h > 3:
            h += 1
        self.largest_shift = max(self.largest_shift, h)
        row = 20 * (3 * (4 * context + kind) + min(abs(q) // 3, 2))
        k = 0
        while k < 20 and self.unary.decide(self.coder, row + k):
            k += 1
        if k == 20:
            k = 19 + self.read_escape()
        m = k
        if h > 0:
            bit = self.remainders.decide(self.coder, 32 * context + min(k, 31))
            m = (((k << 1) | bit) << (h - 1)) + self.plain(h - 1)
        v = p
        if m > 0:
            above = p == 0
            if 0 < p < self.top:
                above = not self.signs.decide(self.coder, 9 * context + min((q + 8) >> 1, 8))
            v = p + m if above else p - m
        if not 0 <= v <= self.top:
            raise ValueError(f"index {v} is not in 0 to {self.top}")
        if self.coder.taken > len(self.code) + 4:
            raise ValueError("the code's length does not fit its content")
        return v

    def read_escape(self) -> int:
        self.escapes += 1
        c = 0
        while self.plain(1):
            c += 1
            if c > MOST_PLAIN_ONES:
                raise ValueError("an escape that is too long")
        return (1 << c) + self.plain(c)

    def plain(self, bits: int) -> int:
        value = 0
        for _ in range(bits):
            value = 2 * value + self.coder.decide(32768)
        return value


def points(dtype: np.dtype, low, high, origin, step) -> tuple[int, int]:
    """§14.1: `below` and `top`."""
    if dtype.kind in "iu":
        below = (origin - low + step // 2) // step
        top = below + (high - origin + step // 2) // step
    else:
        with np.errstate(over="ignore"):
            parts = [np.rint((origin - low) / step), np.rint((high - origin) / step)]
        if not np.isfinite(parts).all():
            raise ValueError("more points than top allows")
        below = int(parts[0])
        top = below + int(parts[1])
    if top > 2**24 - 1:
        raise ValueError("more points than top allows")
    return below, top


def slabs_of(shape: Batch, planes: int) -> list[tuple[int, int]]:
    """§14.2: the first plane of each slab in the stack, and the one behind its last."""
    volumes, depth = shape[:2]
    if planes <= depth:
        return [
            (b * depth + z, b * depth + min(z + planes, depth))
            for b, z in product(range(volumes), range(0, depth, planes))
        ]
    stack = volumes * depth
    return [(at, min(at + planes, stack)) for at in range(0, stack, planes)]


def read(body: bytes, dtype: np.dtype, shape: Batch, low, high, classes=None) -> ReferenceLattice:
    """Parse and decode; `low` and `high` are the header's value range, `classes` the mask's."""
    dtype = np.dtype(dtype).newbyteorder("<")
    kind = int if dtype.kind in "iu" else np.float64
    low, high = kind(low), kind(high)
    if len(body) < dtype.itemsize:
        raise EOFError("origin")
    origin = kind(np.frombuffer(body[: dtype.itemsize], dtype)[0])
    if not low <= origin <= high:
        raise ValueError(f"origin {origin} is not in {low} to {high}")
    at = dtype.itemsize
    if kind is int:
        step, at = take_varint(body, at)
        if not 1 <= step < 2**33:
            raise ValueError(f"step {step}")
    else:
        if len(body) < at + 8:
            raise EOFError("step")
        step = np.frombuffer(body[at : at + 8], "<f8")[0]
        at += 8
        if not (math.isfinite(step) and step > 0):
            raise ValueError(f"step {step}")
    below, top = points(dtype, low, high, origin, step)
    planes, at = take_varint(body, at)
    volumes, depth = shape[:2]
    if not (1 <= planes <= depth or (planes % depth == 0 and depth < planes <= volumes * depth)):
        raise ValueError(f"planes {planes}")
    slabs = slabs_of(shape, planes)
    lengths = []
    for _ in slabs:
        length, at = take_varint(body, at)
        lengths.append(length)
    if at + sum(lengths) > len(body):
        raise EOFError("codes")
    if at + sum(lengths) < len(body):
        raise ValueError("bytes after the last code")
    stack = (volumes * depth, *shape[2:])
    finite = np.ones(stack, bool) if classes is None else np.reshape(classes, stack) == 0
    found, escapes, shift = [], 0, 0
    for (start, end), length in zip(slabs, lengths, strict=True):
        firsts = [n - start for n in range(start, end) if n == start or n % depth == 0]
        slab = Slab(body[at : at + length], finite[start:end], firsts, top)
        at += length
        found.append(slab.indices)
        escapes += slab.escapes
        shift = max(shift, slab.largest_shift)
    indices = np.concatenate(found).reshape(shape)
    return ReferenceLattice(origin, step, planes, len(slabs), below, top, indices, escapes, shift)


def values_of(lattice: ReferenceLattice, dtype: np.dtype, low, high) -> np.ndarray:
    """What the indices stand for (§14.1); voxels that are not finite are left to the mask."""
    dtype = np.dtype(dtype).newbyteorder("<")
    if dtype.kind in "iu":
        flat = [
            min(max(lattice.origin + lattice.step * (i - lattice.below), int(low)), int(high))
            for i in lattice.indices.ravel().tolist()
        ]
        return np.array(flat, dtype).reshape(lattice.indices.shape)
    offsets = lattice.step * (lattice.indices - lattice.below).astype("f8")
    return (lattice.origin + offsets).clip(float(low), float(high)).astype(dtype)
