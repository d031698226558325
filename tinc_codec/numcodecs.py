"""`TINC`: the codec object for every Zarr door, and the codec of the Zarr v2 format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, SupportsIndex

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_ndarray

from tinc_codec.errors import ConfigError, CorruptStreamError
from tinc_codec.params import EncodingParams


class _FrozenDict(dict[str, Any]):
    """A dict that cannot be changed once built, so that its owner can be hashed."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is immutable; build a new one instead")

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse


class TINC(Codec, _FrozenDict):
    """Store each chunk as wavelet features or a tree of sine networks, and keep a promise.

    One object for both formats: a numcodecs codec for `compressor=` (Zarr v2 format), and, read
    as a mapping, the named configuration `{"name": "tinc", "configuration": {...}}` for
    `serializer=` (Zarr v3 format, plain and in shards).

    Parameters
    ----------
    ratio : float
        Encoded bytes of every chunk are at most its raw bytes / ratio; 1 < ratio <= 100000.
    psnr : float
        PSNR of every chunk in dB is at least this, with the chunk's own range as peak.
    max_error : float
        Every valid voxel is decoded within this of the original, in the data's units.
    model : {"auto", "features", "tree", "lattice"}
        What a chunk's bytes go to.
    effort : int
        Encode time spent on quality, 0 to 9. Behind a post-filter, from 1 on, decoding is slower.
    tile : int or "auto"
        Voxels along each axis of the parts of a chunk's features that can be decoded alone, and
        planes of those of a lattice; a power of two from 16 on, 64 by default.
    levels, layers, level_split, node_split, w0, pruning, seed
        Settings of the tree and its fit, see `tinc_codec.params.EncodingParams`.

    Raises
    ------
    ConfigError
        If a value is out of range, or not exactly one of ratio, psnr and max_error is given.

    References
    ----------
    TINC, arXiv 2211.06689.
    """

    codec_id = "tinc"
    params: EncodingParams

    def __init__(
        self,
        *,
        ratio: float | None = None,
        psnr: float | None = None,
        max_error: float | None = None,
        model: str = "auto",
        effort: int = 4,
        levels: int | Literal["auto"] = "auto",
        layers: int | Sequence[int] | Literal["auto"] = "auto",
        level_split: Sequence[float] | Literal["auto"] = "auto",
        node_split: str = "auto",
        w0: float | Literal["auto"] = "auto",
        pruning: str = "auto",
        tile: int | Literal["auto"] = "auto",
        seed: int = 0,
    ) -> None:
        params = EncodingParams(
            ratio=ratio,
            psnr=psnr,
            max_error=max_error,
            model=model,
            effort=effort,
            levels=levels,
            layers=layers,  # type: ignore[arg-type]
            level_split=level_split,  # type: ignore[arg-type]
            node_split=node_split,
            w0=w0,
            pruning=pruning,
            tile=tile,
            seed=seed,
        )
        dict.__init__(self, name=self.codec_id, configuration=params.to_config())
        self.__dict__["params"] = params

    def encode(self, buf: Any) -> bytes:
        """Encode one chunk: an array of 1 to 5 axes, never modified, or a buffer of bytes.

        Whether a part of a chunk was overwritten that held lossy data already is not known here:
        in the Zarr v2 format no `PartialWriteWarning` says so, and the promise is about what zarr
        read before the write.

        Raises
        ------
        UnsupportedDataError
            If the dtype or shape cannot be encoded; said before any work.
        TargetError
            If the promise cannot be kept for this chunk.
        """
        from tinc_codec.volume.chunk import check_supported

        array = np.asarray(buf) if isinstance(buf, np.ndarray) else ensure_ndarray(buf)
        check_supported(array.dtype, array.shape)
        from tinc_codec.codec import encode_chunk

        return encode_chunk(array, self.params)

    def decode(self, buf: Any, out: Any | None = None) -> Any:
        """Decode one chunk to an array of its own shape, dtype, byte order and memory order.

        Parameters
        ----------
        buf : buffer
            The encoded bytes.
        out : ndarray or writeable buffer, optional
            Filled and returned instead of a new array.

        Raises
        ------
        FormatError
            If the bytes are no intact chunk, or do not fit `out`.
        """
        from tinc_codec.codec import decode_chunk

        decoded = decode_chunk(_flat_bytes(buf))
        return decoded if out is None else _copy_into(decoded, out)

    def get_config(self) -> dict[str, Any]:
        """Return the JSON-able configuration, with the codec's id, as stored in `.zarray`."""
        return {"id": self.codec_id, **self.params.to_config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TINC:
        """Build a codec from `get_config`'s result, with or without the id."""
        if not isinstance(config, Mapping):
            raise ConfigError(f"configuration={config!r} is not a mapping of parameters")
        settings = dict(config)
        found = settings.pop("id", cls.codec_id)
        if found != cls.codec_id:
            raise ConfigError(f"id={found!r} is not {cls.codec_id!r}")
        return cls(**EncodingParams.from_config(settings).to_config())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TINC):
            return self.params == other.params
        return dict.__eq__(self, other)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((self.codec_id, self.params))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot set {name}: TINC is immutable; build a new one instead")

    def __repr__(self) -> str:
        settings = self.params.to_config().items()
        return f"TINC({', '.join(f'{name}={value!r}' for name, value in settings)})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return TINC.from_config, (self.get_config(),)


def _flat_bytes(buf: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """View a buffer, in its memory order, as uint8 of shape (size_bytes,)."""
    return np.ascontiguousarray(ensure_ndarray(buf).reshape(-1, order="A")).view(np.uint8)


def _copy_into(decoded: np.ndarray[Any, Any], out: Any) -> Any:
    target = ensure_ndarray(out)
    if target.shape == decoded.shape and np.can_cast(target.dtype, decoded.dtype, "equiv"):
        np.copyto(target, decoded)
        return out
    contiguous = target.flags.c_contiguous or target.flags.f_contiguous
    if not contiguous or target.dtype.itemsize != 1 or target.nbytes != decoded.nbytes:
        raise CorruptStreamError(
            f"decoded chunk has shape {decoded.shape} and dtype {decoded.dtype}, "
            f"but {target.shape} and {target.dtype} are asked for"
        )
    target.reshape(-1, order="A").view(np.uint8)[:] = _flat_bytes(decoded)
    return out
