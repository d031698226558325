"""What an encoder is asked to do: the validated parameters of one `TINC` codec."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tinc_codec.errors import ConfigError

MAX_RATIO = 100_000
MAX_EFFORT = 9
MAX_LEVELS = 6
MAX_LAYERS = 8
MAX_W0 = 1000.0
MIN_TILE, MAX_TILE = 16, 65536
MODELS = ("auto", "tree", "features", "lattice")
_OF_TREES = ("levels", "layers", "level_split", "node_split", "w0", "pruning")
NODE_SPLITS = ("auto", "equal", "aoi", "variance")
FEATURE_PRUNINGS = ("smallify", "dropout")
PRUNINGS = ("auto", "none", "iterative", "dynamic", *FEATURE_PRUNINGS)


@dataclass(frozen=True, kw_only=True)
class EncodingParams:
    """All that decides the bytes of a chunk, besides its voxels; hashable, JSON-able, checked.

    Parameters
    ----------
    ratio : float, optional
        Encoded bytes of every chunk are at most its raw bytes / ratio; 1 < ratio <= 100000.
    psnr : float, optional
        PSNR of every chunk in dB is at least this; > 0. The peak is the chunk's own range of
        valid values. The fewest bytes that reach it are sought.
    max_error : float, optional
        Every valid voxel is decoded within this of the original, in units of the data; >= 0.
        On integers, less than 1 means exact data. The fewest bytes that reach it are sought.
    model : {"auto", "tree", "features", "lattice"}
        What a chunk's bytes go to: hyper layers of a tree, wavelet features, voxels one by one on
        a lattice of values, or what is best.
    effort : int
        Encode time spent on quality, 0 to 9. Behind a post-filter, from 1 on, decoding is slower.
    levels : int or "auto"
        Levels of the tree, 1 to 6.
    layers : int, sequence of int or "auto"
        Hyper layers per node, 1 to 8; a sequence has one entry per level and needs `levels`.
    level_split : sequence of float or "auto"
        Share of the weight bytes per level, root first; needs `levels`. Only proportions matter.
    node_split : {"auto", "equal", "aoi", "variance"}
        How the bytes of a level are shared among its nodes.
    w0 : float or "auto"
        Frequency factor of the sine layers, in (0, 1000].
    pruning : {"auto", "none", "iterative", "dynamic", "smallify", "dropout"}
        Schedule by which small weights of a tree are removed during the fit; or how features are
        pruned while they train: a learnable mask, variational dropout. By default features are
        zeroed by rate-distortion, which is better and faster.
    tile : int or "auto"
        Voxels along each axis of the parts of a chunk's features that can be decoded alone, and
        planes of those of a lattice; a power of two from 16 to 65536. By default 64, of lines and
        planes more, and of a lattice what has 2^20 voxels. With 32 a look at a voxel or a plane
        costs less, for 2 to 3 % more bytes (lattices about 1 %).
    seed : int
        Seed of the fit, 0 to 2**32 - 1.

    Raises
    ------
    ConfigError
        If a value is out of range, or not exactly one of ratio, psnr and max_error is given.

    References
    ----------
    TINC, arXiv 2211.06689, sections 3.2 and 3.3 (tree and allocation).
    """

    ratio: float | None = None
    psnr: float | None = None
    max_error: float | None = None
    model: str = "auto"
    effort: int = 4
    levels: int | Literal["auto"] = "auto"
    layers: int | tuple[int, ...] | Literal["auto"] = "auto"
    level_split: tuple[float, ...] | Literal["auto"] = "auto"
    node_split: str = "auto"
    w0: float | Literal["auto"] = "auto"
    pruning: str = "auto"
    tile: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        targets = ("ratio", "psnr", "max_error")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ConfigError(f"give exactly one of ratio, psnr, max_error; found {found}")
        checked = {
            given[0]: _check_target(given[0], getattr(self, given[0])),
            "model": _choice("model", self.model, MODELS),
            "effort": _integer("effort", self.effort, 0, MAX_EFFORT),
            "levels": _integer("levels", self.levels, 1, MAX_LEVELS, auto=True),
            "layers": _check_layers(self.layers, self.levels),
            "level_split": _check_level_split(self.level_split, self.levels),
            "node_split": _choice("node_split", self.node_split, NODE_SPLITS),
            "w0": _check_w0(self.w0),
            "pruning": _choice("pruning", self.pruning, PRUNINGS),
            "tile": _check_tile(self.tile, self.model),
            "seed": _integer("seed", self.seed, 0, 2**32 - 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.model in ("features", "lattice"):
            for name in _OF_TREES:
                if getattr(self, name) not in ("auto", *FEATURE_PRUNINGS):
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} is a setting of trees, "
                        f'of which model="{self.model}" has none'
                    )
        if self.pruning in FEATURE_PRUNINGS and (
            self.model in ("tree", "lattice") or self.ratio is None
        ):
            raise ConfigError(
                f"pruning={self.pruning!r} prunes features to a size: it needs ratio= and a model "
                f"with features; found model={self.model!r}"
            )

    @property
    def given_tile(self) -> int | None:
        """The `tile` that was asked for, if any."""
        return None if isinstance(self.tile, str) else self.tile

    def to_config(self) -> dict[str, Any]:
        """Return a JSON-able dict of what differs from the defaults; `from_config` reverses it."""
        return {
            field.name: _jsonable(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EncodingParams:
        """Build parameters from stored configuration.

        Raises
        ------
        ConfigError
            If it is not a mapping, names an unknown parameter or holds a value out of range.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"configuration={config!r} is not a mapping of parameters")
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(name) for name in config if name not in known)
        if unknown:
            raise ConfigError(
                f"unknown parameter {', '.join(unknown)}; known are {', '.join(known)}"
            )
        return cls(**config)


def _check_target(name: str, value: object) -> float:
    if name == "ratio":
        return _real(name, value, 1.0, MAX_RATIO, f"in (1, {MAX_RATIO}]")
    if name == "psnr":
        return _real(name, value, 0.0, math.inf, "> 0 and finite")
    return _real(name, value, -math.inf, math.inf, ">= 0 and finite", smallest=0.0)


def _check_layers(value: object, levels: object) -> int | tuple[int, ...] | str:
    entries = _per_level("layers", value, levels, f'"auto", an integer 1 to {MAX_LAYERS}')
    if entries is None:
        return _integer("layers", value, 1, MAX_LAYERS, auto=True)
    return tuple(
        int(_integer(f"layers[{i}]", entry, 1, MAX_LAYERS)) for i, entry in enumerate(entries)
    )


def _check_level_split(value: object, levels: object) -> tuple[float, ...] | str:
    if isinstance(value, str) and value == "auto":
        return value
    entries = _per_level("level_split", value, levels, '"auto"')
    if entries is None:
        raise ConfigError(f'level_split={value!r} is not "auto" or a sequence of numbers > 0')
    shares = tuple(
        _real(f"level_split[{i}]", entry, 0.0, math.inf, "> 0 and finite")
        for i, entry in enumerate(entries)
    )
    if not math.isfinite(sum(shares)):
        raise ConfigError(f"level_split={value!r} has a sum that is not finite")
    return shares


def _per_level(
    field: str, value: object, levels: object, alternatives: str
) -> Sequence[object] | None:
    """Return the entries of a per-level sequence, or None if `value` is no sequence."""
    entries = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
        return None
    if isinstance(levels, str):
        raise ConfigError(
            f"{field}={value!r} has one entry per level, so levels must be an integer; "
            f"found levels={levels!r} (without it: {alternatives})"
        )
    if len(entries) != levels:
        raise ConfigError(
            f"{field}={value!r} has {len(entries)} entries; levels={levels} needs {levels}"
        )
    return entries


def _check_tile(value: object, model: str) -> int | str:
    tile = _integer("tile", value, MIN_TILE, MAX_TILE, auto=True)
    if isinstance(tile, str):
        return tile
    if tile & (tile - 1):
        raise ConfigError(f"tile={tile} is not a power of two from {MIN_TILE} to {MAX_TILE}")
    if model == "tree":
        raise ConfigError(f'tile={tile} is a setting of features and lattices, not of model="tree"')
    return tile


def _check_w0(value: object) -> float | str:
    if isinstance(value, str) and value == "auto":
        return value
    return _real("w0", value, 0.0, MAX_W0, f'in (0, {MAX_W0:g}], nor "auto"')


def _choice(field: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{field}={value!r} is not one of {', '.join(choices)}")
    return str(value)


def _integer(field: str, value: object, low: int, high: int, *, auto: bool = False) -> int | str:
    if auto and isinstance(value, str) and value == "auto":
        return value
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not number or not low <= int(value) <= high:  # type: ignore[call-overload]
        expected = f"an integer {low} to {high}" + (' or "auto"' if auto else "")
        raise ConfigError(f"{field}={value!r} is not {expected}")
    return int(value)  # type: ignore[call-overload]


def _real(
    field: str,
    value: object,
    above: float,
    high: float,
    expected: str,
    *,
    smallest: float = -math.inf,
) -> float:
    """Return `value` as a finite float with above < value <= high and value >= smallest."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and above < number <= high and number >= smallest:
            return number
    raise ConfigError(f"{field}={value!r} is not a number {expected}")


def _jsonable(value: object) -> object:
    if isinstance(value, tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
