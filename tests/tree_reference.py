"""A second reader of the tree section, written from docs/format.md §7 and §8 and slow on purpose.

Integers are Python's, the network is float64, and nothing of the package is used, so that both can
be held against each other.
"""

import bisect
import math
import struct
from dataclasses import dataclass

import numpy as np

WORD = 1 << 32
TOTAL = 1 << 24
OCTAVE = [1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096, 1.4142135623730951,
          1.5422108254079407, 1.681792830507429, 1.8340080864093424]  # fmt: skip


@dataclass
class TensorCode:
    """What stands before the coded symbols for each tensor."""

    step_code: int
    family: int
    scale: int
    zero: int
    magnitude: int


@dataclass
class ReferenceTree:
    """A parsed section and its symbols, one list per tensor."""

    grid: tuple[int, int, int]
    layers: list[int]
    widths: list[list[int]]
    w0: float
    scaling: list[tuple[float, float]]
    codes: list[TensorCode]
    symbols: list[list[int]]


def splits_of(grid: tuple[int, int, int], levels: int) -> list[tuple[int, ...]]:
    """§7.2: along which axes each level but the last is halved."""
    parts = [1, 1, 1]
    splits = []
    for _ in range(levels - 1):
        sizes = [math.ceil(n / p) for n, p in zip(grid, parts, strict=True)]
        split = tuple(2 if 2 * s > max(sizes) and s >= 8 else 1 for s in sizes)
        parts = [p * s for p, s in zip(parts, split, strict=True)]
        splits.append(split)
    return splits


def positions_of(splits: list[tuple[int, ...]]) -> list[list[tuple[int, int, int]]]:
    """§7.2: per level, the position of each node among the nodes of its level."""
    levels = [[(0, 0, 0)]]
    for sz, sy, sx in splits:
        levels.append(
            [
                (pz * sz + z, py * sy + y, px * sx + x)
                for pz, py, px in levels[-1]
                for z in range(sz)
                for y in range(sy)
                for x in range(sx)
            ]
        )
    return levels


def tensor_shapes(
    grid: tuple[int, int, int], layers: list[int], widths: list[list[int]]
) -> list[list[tuple[int, int]]]:
    """§7.3: per tensor, rows and columns of each node's part."""
    nodes = positions_of(splits_of(grid, len(layers)))
    shapes = []
    for level, count in enumerate(layers):
        children = len(nodes[level]) // len(nodes[level - 1]) if level else 1
        if level == 0:
            inputs = [sum(n > 1 for n in grid) or 1]
        else:
            inputs = [widths[level - 1][i // children] for i in range(len(nodes[level]))]
        outputs = widths[level]
        for _ in range(count):
            shapes.append(list(zip(outputs, inputs, strict=True)))
            shapes.append([(n, 1) for n in outputs])
            inputs = outputs
        if level == len(layers) - 1:
            shapes.append([(1, n) for n in outputs])
            shapes.append([(1, 1)] * len(outputs))
    return shapes


def cumulative(code: TensorCode) -> list[int]:
    """§8.1 and §8.2: 24-bit cumulative weights of the symbols -magnitude to magnitude."""
    size = OCTAVE[code.scale % 8] * 2.0 ** (code.scale // 8 - 8)
    half = [1.0]
    if code.family == 0:
        theta = (math.sqrt(1.0 + size * size) - 1.0) / size
        for _ in range(code.magnitude):
            half.append(half[-1] * theta)
    else:
        q = 1.0 / (1.0 + 1.0 / (2.0 * size * size) / 4096.0)
        for _ in range(12):
            q = q * q
        power = 1.0
        for _ in range(code.magnitude):
            half.append(half[-1] * (q * power))
            power = power * (q * q)
    half = [max(h, 1e-30) for h in half]
    if code.zero:
        factor = (1.0 - code.zero / 128) / (2.0 * math.fsum(half[1:]))
        half = [code.zero / 128] + [h * factor for h in half[1:]]
    table = half[:0:-1] + half
    total = 0.0
    for p in table:
        total += p
    scale = (TOTAL - len(table)) / total
    below, weights = 0.0, []
    for i, p in enumerate(table):
        weights.append(int(below * scale) + i)
        below += p
    return [*weights, TOTAL]


class RangeDecoder:
    """§8.3."""

    def __init__(self, data: bytes) -> None:
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.taken = 0
        self.range = WORD * WORD - 1
        self.offset = self.next_word() * WORD + self.next_word()

    def next_word(self) -> int:
        self.taken += 1
        return self.words[self.taken - 1] if self.taken <= len(self.words) else 0

    def symbol(self, weights: list[int]) -> int:
        unit = self.range >> 24
        quantile = self.offset // unit
        if quantile >= TOTAL:
            raise ValueError("no code word")
        index = bisect.bisect_right(weights, quantile) - 1
        self.offset -= unit * weights[index]
        self.range = unit * (weights[index + 1] - weights[index])
        if self.range < WORD:
            self.range *= WORD
            self.offset = self.offset * WORD + self.next_word()
        return index


def read(body: bytes, grid: tuple[int, int, int], volumes: int) -> ReferenceTree:
    """§7.1, without the checks of a real reader."""
    position = 0

    def take(n: int) -> bytes:
        nonlocal position
        position += n
        return body[position - n : position]

    def varint() -> int:
        value, shift = 0, 0
        while True:
            byte = take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    layers = list(take(take(1)[0]))
    (w0,) = struct.unpack("<f", take(4))
    widths = []
    for nodes in positions_of(splits_of(grid, len(layers))):
        width = take(1)[0]
        widths.append([width] * len(nodes) if width else list(take(len(nodes))))
    scaling = [struct.unpack("<ff", take(8)) for _ in range(volumes)]
    shapes = tensor_shapes(grid, layers, widths)
    codes = []
    for _ in shapes:
        step, scale, zero = take(3)
        codes.append(TensorCode(step, zero >> 7, scale, zero & 127, varint()))
    decoder = RangeDecoder(body[position:])
    symbols = []
    for code, parts in zip(codes, shapes, strict=True):
        count = volumes * sum(rows * columns for rows, columns in parts)
        if code.magnitude == 0:
            symbols.append([0] * count)
            continue
        weights = cumulative(code)
        symbols.append([decoder.symbol(weights) - code.magnitude for _ in range(count)])
    return ReferenceTree(grid, layers, widths, w0, scaling, codes, symbols)


def step_of(code: int) -> float:
    """§7.4: the step of a code, a float32 value."""
    return float(np.float32(2.0 ** (-code / 16)))


def parameters(tree: ReferenceTree, volume: int) -> list[list[np.ndarray]]:
    """Per tensor and node, a matrix in float64."""
    volumes = len(tree.scaling)
    matrices = []
    shapes = tensor_shapes(tree.grid, tree.layers, tree.widths)
    for code, symbols, parts in zip(tree.codes, tree.symbols, shapes, strict=True):
        share = len(symbols) // volumes
        own = np.array(symbols[volume * share : (volume + 1) * share], dtype=np.float64)
        own = own * step_of(code.step_code)
        ends = np.cumsum([rows * columns for rows, columns in parts])
        pieces = np.split(own, ends[:-1])
        matrices.append([p.reshape(part) for p, part in zip(pieces, parts, strict=True)])
    return matrices


def evaluate(
    grid: tuple[int, int, int],
    layers: list[int],
    w0: float,
    matrices: list[list[np.ndarray]],
) -> np.ndarray:
    """§7.5: the network's output at every voxel, float64 [z, y, x]."""
    levels = positions_of(splits_of(grid, len(layers)))
    parts = [max(p[axis] for p in levels[-1]) + 1 for axis in range(3)]
    size = [math.ceil(n / p) for n, p in zip(grid, parts, strict=True)]
    axes = [axis for axis in range(3) if grid[axis] > 1] or [2]
    step = 2.0 / max(1, max(grid) - 1)
    out = np.full(grid, np.nan)
    for leaf, position in enumerate(levels[-1]):
        ranges = [
            range(position[a] * size[a], min((position[a] + 1) * size[a], grid[a]))
            for a in range(3)
        ]
        if any(len(r) == 0 for r in ranges):
            continue
        places = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
        centred = (places - (np.array(grid) - 1) / 2) * step
        x = centred[:, axes].T
        tensor = 0
        for level, count in enumerate(layers):
            node = leaf * len(levels[level]) // len(levels[-1])
            for _ in range(count):
                x = np.sin(w0 * (matrices[tensor][node] @ x + matrices[tensor + 1][node]))
                tensor += 2
        f = matrices[tensor][leaf] @ x + matrices[tensor + 1][leaf]
        out[tuple(places.T)] = f[0]
    return out


def decode(body: bytes, grid: tuple[int, int, int], volumes: int) -> np.ndarray:
    """§7.6: t of every voxel before clipping, float64 [volume, z, y, x]."""
    tree = read(body, grid, volumes)
    return np.stack(
        [
            offset + gain * evaluate(grid, tree.layers, tree.w0, parameters(tree, volume))
            for volume, (offset, gain) in enumerate(tree.scaling)
        ]
    )
