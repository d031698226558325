"""A second decoder of masks, written from `docs/format.md` §5 alone; slow and plain."""

import itertools
import math

import numpy as np

FULL_CONTEXT = [
    (-1, 0, 0), (0, -1, 0), (0, 0, -1), (-1, -1, 0), (-1, 0, -1), (-1, 0, 1), (-1, 1, 0),
    (0, -1, -1), (0, -1, 1), None, (-1, -1, -1), (-1, -1, 1), (-1, 1, -1), (-1, 1, 1),
    (-2, 0, 0), (0, -2, 0), (0, 0, -2),
]  # fmt: skip


class Tables(dict):
    def __missing__(self, key):
        self[key] = [0, 0]
        return self[key]

    def estimate(self, key):
        n0, n1 = self[key]
        return max(1, ((2 * n1 + 1) * 65536) // (2 * (n0 + n1) + 2))

    def count(self, key, decision):
        entry = self[key]
        entry[decision] += 1
        if entry[decision] == 2**20:
            entry[:] = [n // 2 for n in entry]


class Coder:
    def __init__(self, data):
        self.data = data
        self.taken = 0
        self.range = 2**32 - 1
        self.code = 0
        for _ in range(4):
            self.code = self.code * 256 + self.take()

    def take(self):
        self.taken += 1
        return self.data[self.taken - 1] if self.taken <= len(self.data) else 0

    def decide(self, p):
        rare = 1 if p <= 32768 else 0
        share = p if rare else 65536 - p
        bound = (self.range >> 16) * share
        if self.code < bound:
            decision, self.range = rare, bound
        else:
            decision = 1 - rare
            self.range -= bound
            self.code -= bound
        while self.range < 2**24:
            self.range *= 256
            self.code = self.code * 256 + self.take()
        return decision


def decode_reference(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    if data[0] < 4:
        assert len(data) == 1
        return np.full(shape, data[0], np.uint8)
    n_z, n_y, n_x = (1,) * (3 - len(shape)) + shape[-3:]
    n_b = math.prod(shape[:-3])
    coder, tables = Coder(data[1:]), Tables()
    voxels: dict[tuple[int, int, int, int], int] = {}

    def voxel(b, z, y, x):
        return voxels.get((b, z, y, x), 0)

    def summary(b, z, y, s):
        if not (0 <= z < n_z and 0 <= y < n_y and 0 <= s < -(-n_x // 8)):
            return 0
        found = {voxels[b, z, y, x] for x in range(8 * s, min(8 * s + 8, n_x))}
        return found.pop() if found in ({0}, {1}) else None

    def decode_voxel(b, z, y, x):
        context = 0
        for k, offset in enumerate(FULL_CONTEXT):
            at = (
                (b - 1, z, y, x)
                if offset is None
                else (b, z + offset[0], y + offset[1], x + offset[2])
            )
            context |= (voxel(*at) > 0) << k
        n0, n1 = tables["full", context]
        q = tables.estimate(("near", context % 1024))
        p = max(1, (n1 * 65536 + 4 * q) // (n0 + n1 + 4))
        decision = coder.decide(p)
        tables.count(("full", context), decision)
        tables.count(("near", context % 1024), decision)
        if decision == 0:
            return 0
        kind = voxel(b, z - 1, y, x) + 4 * voxel(b, z, y - 1, x) + 16 * voxel(b, z, y, x - 1)
        result = 1
        for table in ("infinite", "negative"):
            decision = coder.decide(tables.estimate((table, kind)))
            tables.count((table, kind), decision)
            if decision == 0:
                break
            result += 1
        return result

    repeated = set()
    for b, z, y in itertools.product(range(n_b), range(n_z), range(n_y)):
        if b > 0 and z == y == 0:
            decision = coder.decide(tables.estimate("volume"))
            tables.count("volume", decision)
            if decision == 0:
                repeated.add(b)
                voxels.update({(b, *key[1:]): c for key, c in voxels.items() if key[0] == b - 1})
        if b in repeated:
            continue
        for s in range(-(-n_x // 8)):
            around = {summary(b, z - 2, y, s), summary(b, z, y - 2, s), summary(b, z, y, s - 1)}
            for t in (s - 1, s, s + 1):
                around |= {summary(b, z - 1, y + dy, t) for dy in (-1, 0, 1)}
                around.add(summary(b, z, y - 1, t))
            if b > 0:
                around.add(summary(b - 1, z, y, s))
            row = range(8 * s, min(8 * s + 8, n_x))
            if around in ({0}, {1}):
                (alike,) = around
                decision = coder.decide(tables.estimate(("segment", alike)))
                tables.count(("segment", alike), decision)
                if decision == 0:
                    voxels.update({(b, z, y, x): alike for x in row})
                    continue
            for x in row:
                voxels[b, z, y, x] = decode_voxel(b, z, y, x)
    assert coder.taken - 4 <= len(data) - 1 <= coder.taken
    return np.array([voxels[key] for key in sorted(voxels)], np.uint8).reshape(shape)
