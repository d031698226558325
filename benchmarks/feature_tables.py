"""Fit the static weights and tables of the features' contexts.

python -m benchmarks.feature_tables --check

The result, `tinc_codec/entropy/feature_tables.npz`, is part of the format: write a new one only
for a new version of the format (or before the first release), and run `python -m
tests.golden.regenerate` after it. `--check` leaves one volume out at a time instead and says how
many bytes more it then needs: 0 to 1.5 % for the tables there are.

Symbols come from whole volumes, compressed at several ratios with their axes permuted in several
ways. Weights are non-negative and make the sum the expected magnitude (or presence of a block):
least squares, reweighted by what the sum predicts. Tables are the frequencies of buckets per
context, drawn towards a Lomax distribution where there are few.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import volumes
from tinc_codec.entropy import buckets as magnitude_buckets
from tinc_codec.entropy import feature_tables as static
from tinc_codec.entropy.buckets import represent_band
from tinc_codec.entropy.contexts import context_of
from tinc_codec.entropy.phases import LevelState
from tinc_codec.entropy.pyramid import BANDS, Level, inside
from tinc_codec.entropy.stencils import lay_out
from tinc_codec.fit.feature_search import fit_to_size
from tinc_codec.fit.features import FeatureFit, FeatureTarget, demands_of
from tinc_codec.model.features import feature_levels, read_features

CASES = ((6, (2, 1, 0)), (20, (1, 0, 2)), (64, (0, 1, 2)), (64, (2, 0, 1)),
         (250, (1, 2, 0)), (250, (0, 1, 2)))  # fmt: skip
"""Ratios, and the order of axes at each."""
PASSES = 3
MOST_SAMPLES = 20_000
UNIT = 1 << static.WEIGHT_BITS
MOST_WEIGHT = 12 * UNIT
COEFFICIENT, FLAG = 0, 1

Key = tuple[int, int, int, int]
"""Kind, level class, mask, phase."""


class Sample(NamedTuple):
    """What one phase of one band of one case gives."""

    case: int
    features: np.ndarray
    found: np.ndarray
    repeats: float


def symbols_of(volume: np.ndarray, ratio: float) -> np.ndarray:
    """Quantise a volume as the encoder does at a ratio; int32, in the layout of coefficients."""
    low, high = float(volume.min()), float(volume.max())
    values = ((volume.astype(np.float64) - low) / (high - low)).astype(np.float32)[None]
    fit = FeatureFit(FeatureTarget(values, demands_of(values, None)), 1)
    code = fit_to_size(fit, int(volume.nbytes // ratio), PASSES)
    assert code is not None
    z, y, x = volume.shape
    return read_features(code.section, (z, y, x), 1).symbols[0]


def unit_sums(
    state: LevelState, kind: int, mask: int, blocks: np.ndarray, phase: int
) -> np.ndarray:
    """Evaluate the sum of contexts with one weight at a time; int64 [place, weight], and places.

    Returns
    -------
    ndarray of int64
        Shape (place, 1 + number of weights): the index into the band's magnitudes, then the sums.
    """
    padded = state.level.padded if kind == COEFFICIENT else state.level.padded_blocks
    columns = []
    for weight in range(static.N_WEIGHTS):
        rows = np.zeros((len(static.PHASE_ORDER), static.N_WEIGHTS), dtype=np.int32)
        rows[:, weight] = 1
        stencil = lay_out(rows, mask, padded)
        phases = (
            state.coefficient_phases(mask, blocks, 0, stencil)
            if kind == COEFFICIENT
            else state.flag_phases(mask, stencil)
        )
        sums = np.empty(len(phases.blocks) * len(static.PHASE_ORDER), np.uint32)
        places, _ = phases.contexts(phase, sums)
        columns.append(sums[: len(places)].astype(np.int64))
    return np.stack([places.astype(np.int64), *columns], axis=1)


def walk(symbols: np.ndarray) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
    """Go through all phases of a volume as a coder does; key, sums per weight, what was found."""
    z, y, x = symbols.shape
    parent: LevelState | None = None
    for level in reversed(feature_levels((z, y, x))):
        state = LevelState(level, parent)
        for mask in level.masks:
            magnitudes = np.zeros(level.padded, dtype=np.uint16)
            present = np.zeros(level.padded_blocks, dtype=np.uint16)
            begin, shape = level.band_begin(mask), level.band_shape(mask)
            represent_band(symbols, begin, shape, magnitudes, present)
            band = magnitudes[inside(shape)]
            blocks = level.every_block(mask)
            if level.is_blocked(mask):
                flags = present[inside(level.blocks(mask))]
                yield from _phases(state, FLAG, mask, blocks, flags)
                blocks = np.argwhere(flags).astype(np.int32)
            if len(blocks):
                yield from _phases(state, COEFFICIENT, mask, blocks, band)
            state.finish_band(mask, blocks)
        parent = state


def _phases(
    state: LevelState, kind: int, mask: int, blocks: np.ndarray, found: np.ndarray
) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
    known = (state.magnitudes if kind == COEFFICIENT else state.block_sums)[mask - 1]
    full = np.zeros_like(known)
    full[inside(found.shape)] = found
    for phase in range(len(static.PHASE_ORDER)):
        sums = unit_sums(state, kind, mask, blocks, phase)
        places, sums = sums[:, 0], sums[:, 1:]
        values = full.reshape(-1)[places]
        yield (kind, _class(state.level), mask, phase), sums, values
        known.reshape(-1)[places] = values


def _class(level: Level) -> int:
    return level.weights_class


def collect(names: Collection[str], data: Path | None) -> dict[Key, list[Sample]]:
    """Gather samples of all volumes, at most `MOST_SAMPLES` of a phase of a band."""
    samples: dict[Key, list[Sample]] = {}
    chooser = np.random.default_rng(0)
    for number, name in enumerate(names):
        volume = volumes.load(name, data=data)
        for ratio, axes in CASES:
            for key, sums, values in walk(symbols_of(volume.transpose(axes).copy(), ratio)):
                kept = np.arange(len(values))
                if len(kept) > MOST_SAMPLES:
                    kept = chooser.choice(len(values), MOST_SAMPLES, replace=False)
                sample = Sample(number, sums[kept], values[kept], len(values) / max(1, len(kept)))
                samples.setdefault(key, []).append(sample)
        print(f"{name}: collected", flush=True)
    return samples


def fit_weights(samples: dict[Key, list[Sample]], without: int = -1) -> np.ndarray:
    """Fit weights; int64 [kind, level class, mask - 1, phase, weight]."""
    shape = (2, static.LEVEL_CLASSES, BANDS, len(static.PHASE_ORDER), static.N_WEIGHTS)
    weights = np.zeros(shape)
    for (kind, level_class, mask, phase), parts in samples.items():
        parts = [part for part in parts if part.case != without]
        if parts:
            weights[kind, level_class, mask - 1, phase] = _least_squares(parts)
    return np.clip(np.rint(weights * UNIT), 0, MOST_WEIGHT).astype(np.int64)


def _least_squares(parts: list[Sample]) -> np.ndarray:
    x = np.concatenate([part.features for part in parts]).astype(np.float64)
    y = np.concatenate([part.found for part in parts]).astype(np.float64)
    # A case counts by the square root of its size.
    trust = np.concatenate([np.full(len(p.found), (len(p.found) + 50) ** -0.5) for p in parts])
    used = np.flatnonzero(x.any(axis=0))
    x = x[:, used]
    expected = np.full(len(y), y.mean() + 0.01)
    for _ in range(6):
        weighted = x * (trust / (expected + 0.03) ** 1.6)[:, None]
        normal, right = weighted.T @ x, weighted.T @ y
        normal += np.diag(1e-2 * np.diag(normal) / len(used) + 1e-6)
        active = np.ones(len(used), dtype=bool)
        while True:
            solution = np.zeros(len(used))
            solution[active] = np.linalg.solve(normal[np.ix_(active, active)], right[active])
            if (solution >= -1e-9).all():
                break
            active &= solution > 0
        expected = np.maximum(x @ solution, 2.0**-8)
    row = np.zeros(static.N_WEIGHTS)
    row[used] = solution
    return row


def contexts_of(sums: np.ndarray) -> np.ndarray:
    """Quantise sums as `entropy.contexts.context_of` does."""
    return np.array([context_of(int(total), 0) for total in sums], dtype=np.int64)


def count(
    samples: dict[Key, list[Sample]], weights: np.ndarray, without: int = -1, only: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """Count buckets and presences per context."""
    buckets = np.zeros((static.N_CONTEXTS, magnitude_buckets.N_BUCKETS))
    present = np.zeros((static.N_CONTEXTS, 2))
    for (kind, level_class, mask, phase), parts in samples.items():
        for part in parts:
            if part.case == without or (only >= 0 and part.case != only):
                continue
            row = weights[kind, level_class, mask - 1, phase]
            found = contexts_of(part.features @ row)
            if kind == FLAG:
                np.add.at(present, (found, part.found.astype(int)), part.repeats)
            else:
                bucket = (
                    np.searchsorted(magnitude_buckets.REPRESENTED, part.found, side="right") - 1
                )
                np.add.at(buckets, (found, bucket), part.repeats)
    return buckets, present


def smooth(buckets: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn counts into probabilities."""
    low = magnitude_buckets.BUCKET_BASE[:-1].astype(float)
    high = magnitude_buckets.BUCKET_BASE[1:].astype(float)
    centre = 2.0 ** ((np.arange(static.N_CONTEXTS) - 0.5) / 4 - 7)
    centre[0] = 2.0**-8

    def lomax(scale: float, shape: float) -> np.ndarray:
        def tail(m: np.ndarray) -> np.ndarray:
            return (1 + np.maximum(m - 0.5, 0) / (shape * scale)) ** -(shape + 1)

        probability = np.maximum(tail(low) - tail(high), 1e-12)
        return probability / probability.sum()

    out = np.empty_like(buckets)
    best = 0.0, 4.0
    for context, row in enumerate(buckets):
        if row.sum() > 200:
            tried = [(s, a) for a in (1.5, 2.5, 4, 7, 12, 30) for s in np.linspace(-2, 2, 17)]
            best = min(
                tried, key=lambda t: -(row @ np.log(lomax(centre[context] * 2.0 ** t[0], t[1])))
            )
        prior = lomax(centre[context] * 2.0 ** best[0], best[1])
        out[context] = (row + 60 * prior) / (row.sum() + 60)
    return out, (present[:, 1] + 2 * centre.clip(0, 0.98)) / (present.sum(axis=1) + 2)


def size_bytes(counts: tuple[np.ndarray, np.ndarray], tables: tuple[np.ndarray, ...]) -> float:
    """Give the ideal length of counted symbols under tables, signs and remainders left out."""
    flags = np.stack([1 - tables[1], tables[1]], axis=1)
    return float(
        -(counts[0] * np.log2(np.maximum(tables[0], 2.0**-16))).sum() / 8
        - (counts[1] * np.log2(flags.clip(2.0**-12, 1))).sum() / 8
    )


def main() -> None:
    """Write the tables, or check how far they depend on each volume."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--volumes", nargs="+", default=list(volumes.NAMES))
    parser.add_argument("--check", action="store_true", help="leave one volume out at a time")
    parser.add_argument("--out", type=Path, default=Path("feature_tables.npz"))
    arguments = parser.parse_args()
    samples = collect(arguments.volumes, arguments.data)
    weights = fit_weights(samples)
    tables = smooth(*count(samples, weights))
    if arguments.check:
        for number, name in enumerate(arguments.volumes):
            others = fit_weights(samples, without=number)
            blind = smooth(*count(samples, others, without=number))
            more = size_bytes(count(samples, others, only=number), blind)
            less = size_bytes(count(samples, weights, only=number), tables)
            print(f"{name}: {100 * (more / less - 1):+.2f} % without it")
        return
    whole = 1 << static.PROBABILITY_BITS
    np.savez_compressed(
        arguments.out,
        coefficient_weights=weights[COEFFICIENT].astype(np.uint16),
        flag_weights=weights[FLAG].astype(np.uint16),
        buckets=np.maximum(1, np.rint(tables[0] * whole)).astype(np.uint16),
        present=np.rint(tables[1] * whole).clip(16, whole - 16).astype(np.uint16),
    )
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
