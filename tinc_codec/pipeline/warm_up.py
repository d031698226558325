"""Compile what reading and writing takes, before anybody waits for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from tinc_codec.codec import decode_chunk, decode_level, decode_region, encode_chunk
from tinc_codec.errors import ConfigError
from tinc_codec.params import EncodingParams

__all__ = ["DTYPES", "WarmUp", "count_steps", "warm_up"]

DTYPES = ("uint8", "int16", "uint16", "float32")

_EDGE = 64
"""Of the chunk; smaller ones take short cuts."""
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"ratio": 64, "effort": 0},
    {"ratio": 64, "effort": 2},
    {"ratio": 64},
    {"psnr": 30, "effort": 0, "model": "features", "tile": 32},
    {"max_error": 0.05, "effort": 0, "model": "features", "tile": 32},
    {"max_error": 0.05, "effort": 0, "model": "lattice"},
    {"ratio": 64, "effort": 0, "model": "tree"},
)
"""What between them runs every kernel; bounds are parts of the value range."""


@dataclass(frozen=True)
class WarmUp:
    """What `warm_up` did.

    Attributes
    ----------
    seconds : float
    is_kept : bool
        Whether other processes need not compile any more. Not where neither the package's folder
        nor the user's cache can be written; the environment variable `NUMBA_CACHE_DIR` names
        another one.
    """

    seconds: float
    is_kept: bool


def warm_up(
    dtypes: Sequence[str] = DTYPES, *, on_step: Callable[[], object] = lambda: None
) -> WarmUp:
    """Compile all kernels for some dtypes, and keep them for the processes that follow.

    Otherwise each is compiled when it is first needed, on every new machine. What was compiled
    before is not compiled again.

    Parameters
    ----------
    dtypes : sequence of str
        Of the voxels.
    on_step : callable
        Called `count_steps(dtypes)` times.

    Raises
    ------
    ConfigError
        If there is no dtype, or one does not exist.
    UnsupportedDataError
        If it is not one that this codec stores.
    """
    from tinc_codec.entropy.tile_walk import code_level

    start = perf_counter()
    if not dtypes:
        raise ConfigError("dtypes: none given, at least one is needed")
    for dtype in [_dtype(name) for name in dtypes]:
        for settings in _SETTINGS:
            _run(_chunk(dtype), settings)
            on_step()
    return WarmUp(perf_counter() - start, code_level.stats.cache_path is not None)


def count_steps(dtypes: Sequence[str] = DTYPES) -> int:
    """Say how often `warm_up` calls `on_step`."""
    return len(dtypes) * len(_SETTINGS)


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ConfigError(f"dtype={name!r} is no dtype: {error}") from error


def _chunk(dtype: np.dtype) -> np.ndarray:
    """Make a chunk of waves and noise, flat at both ends: NaN in a corner if there can be one."""
    line = np.arange(_EDGE) / 6
    waves = np.sin(np.add.outer(np.add.outer(line, 2 * line), line))
    noise = np.random.default_rng(0).normal(size=waves.shape)
    chunk = np.clip(50 + 60 * waves + 4 * noise, 20, 90).astype(dtype)
    if dtype.kind == "f":
        chunk[:2, :3, :5] = np.nan
    return chunk


def _run(chunk: np.ndarray, settings: dict[str, Any]) -> None:
    """Write a chunk, and read all of it, parts and levels."""
    settings = {**settings}
    if "max_error" in settings:
        settings["max_error"] *= float(np.nanmax(chunk) - np.nanmin(chunk))
    stream = encode_chunk(chunk, EncodingParams(**settings))
    decode_chunk(stream)
    every, one = slice(0, _EDGE), slice(3, 4)
    for region in ((one, one, one), (one, every, every), (every, every, one)):
        decode_region(stream, region)
    for level in (1, 2):
        decode_level(stream, level)
