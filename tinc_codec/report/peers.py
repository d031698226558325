"""What other lossy codecs make of a part of the volume in as many bytes.

Each peer runs on one thread and is brought to a size by trying settings. SPERR, SZ3 and ZFP
(imagecodecs) get the volume as float32; HEVC (x265 `slow`, PyAV) gets the z planes as frames, 8-bit
data as it is and anything else mapped linearly to 12 bits; JPEG 2000 and JPEG XL (imagecodecs) get
the z planes one below the other in one image, JPEG 2000 in 8 or 16 bits, JPEG XL as float32. The
two numbers of a linear mapping are not counted. Integers come back rounded and clipped to their
dtype.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tinc_codec.metrics import measure
from tinc_codec.report.frames import (
    from_strip,
    hevc_decode,
    hevc_encode,
    linear_to_srgb,
    srgb_to_linear,
    to_frames,
    to_strip,
)

__all__ = ["PEERS", "Peer", "PeerPoint", "missing_library", "run_peer"]

# A size is reached when it is no more than this below the one asked for.
_CLOSE = 0.015
_MAX_TRIALS = 18
# From 20 on libjxl halves the resolution, and its largest is 25.
_JPEGXL_LAST_DISTANCE = 15.0
_CONTRAST = struct.Struct("<f")


@dataclass(frozen=True)
class PeerPoint:
    """What a codec made of the volume.

    Attributes
    ----------
    name : str
    asked_bytes, size_bytes : int
        The size to reach, and the one that was: smaller, or the smallest the codec can.
    psnr : float
        In dB, the volume's own range as peak.
    max_error : float
        In the data's units.
    """

    name: str
    asked_bytes: int
    size_bytes: int
    psnr: float
    max_error: float


class _Coder(NamedTuple):
    """A codec bound to a volume: setting to bytes and back."""

    encode: Callable[[float], bytes | bytearray]
    decode: Callable[[bytes | bytearray], np.ndarray]
    # The settings with the fewest and with the most bytes; whether steps between are factors.
    small: float
    large: float
    logarithmic: bool
    # Settings up to half as fine as the one found that are tried as well, for the best PSNR.
    n_coarser: int = 0


@dataclass(frozen=True)
class Peer:
    """A codec to compare with.

    Attributes
    ----------
    name : str
    library : str
        That has it.
    part : str or None
        What has to be `available` in that library.
    bind : callable
        (volume of three axes) to its coder.
    """

    name: str
    library: str
    part: str | None
    bind: Callable[[np.ndarray], _Coder]


def _imagecodecs() -> Any:
    # Untyped: its annotations take levels for integers, which they need not be.
    return importlib.import_module("imagecodecs")


def _sperr(volume: np.ndarray) -> _Coder:
    imagecodecs = _imagecodecs()
    values = volume.astype(np.float32)
    return _Coder(
        lambda bits: imagecodecs.sperr_encode(values, bits, "bpp", numthreads=1),
        lambda data: imagecodecs.sperr_decode(data, numthreads=1),
        small=1e-3,
        large=8.0 * volume.itemsize,
        logarithmic=True,
    )


def _sz3(volume: np.ndarray) -> _Coder:
    imagecodecs = _imagecodecs()
    values = volume.astype(np.float32)
    span = float(values.max()) - float(values.min())
    return _Coder(
        lambda bound: imagecodecs.sz3_encode(values, mode="abs", abs=bound),
        lambda data: imagecodecs.sz3_decode(data, volume.shape, np.float32),
        small=span,
        large=span * 1e-6,
        logarithmic=True,
        # A looser error bound can give a better PSNR.
        n_coarser=24,
    )


def _zfp(volume: np.ndarray) -> _Coder:
    imagecodecs = _imagecodecs()
    values = volume.astype(np.float32)
    span = float(values.max()) - float(values.min())
    return _Coder(
        lambda bound: imagecodecs.zfp_encode(values, bound, mode="a", numthreads=1),
        imagecodecs.zfp_decode,
        small=span * 1e5,
        large=span * 1e-6,
        logarithmic=True,
    )


def _hevc(volume: np.ndarray) -> _Coder:
    frames, scale, low = to_frames(volume, bits=12)
    return _Coder(
        lambda crf: hevc_encode(frames, crf),
        lambda data: hevc_decode(data, frames) * scale + low,
        small=51.0,
        large=0.0,
        logarithmic=False,
    )


def _jpeg2000(volume: np.ndarray) -> _Coder:
    imagecodecs = _imagecodecs()
    frames, scale, low = to_frames(volume, bits=16)
    image = to_strip(frames)

    def decode(data: bytes | bytearray) -> np.ndarray:
        strip = imagecodecs.jpeg2k_decode(data, numthreads=1)
        return from_strip(strip, volume.shape) * scale + low

    return _Coder(
        lambda level: imagecodecs.jpeg2k_encode(
            image, level, codecformat="j2k", reversible=False, numthreads=1
        ),
        decode,
        small=1.0,
        large=150.0,
        logarithmic=False,
    )


def _jpegxl(volume: np.ndarray) -> _Coder:
    """Bind libjxl, effort 7.

    imagecodecs declares float32 to be linear light, which libjxl quantises in steps that grow with
    the value; through the curve of sRGB they are about even. Distances past 15 do little, so from
    there on the contrast is lowered instead.
    """
    imagecodecs = _imagecodecs()
    low = float(volume.min())
    scale = float(volume.max()) - low or 1.0
    image = to_strip((volume - np.float64(low)) / scale)

    def encode(distance: float) -> bytes:
        contrast = min(1.0, _JPEGXL_LAST_DISTANCE / distance)
        data = imagecodecs.jpegxl_encode(
            srgb_to_linear(0.5 + contrast * (image - 0.5)),
            effort=7,
            distance=min(distance, _JPEGXL_LAST_DISTANCE),
            numthreads=1,
        )
        return _CONTRAST.pack(contrast) + data

    def decode(data: bytes | bytearray) -> np.ndarray:
        (contrast,) = _CONTRAST.unpack_from(data)
        decoded = imagecodecs.jpegxl_decode(data[_CONTRAST.size :], numthreads=1)
        values = 0.5 + (linear_to_srgb(decoded) - 0.5) / contrast
        return from_strip(values, volume.shape) * scale + low

    return _Coder(encode, decode, small=1000 * _JPEGXL_LAST_DISTANCE, large=0.05, logarithmic=True)


PEERS = (
    Peer("SPERR", "imagecodecs", "SPERR", _sperr),
    Peer("SZ3", "imagecodecs", "SZ3", _sz3),
    Peer("ZFP", "imagecodecs", "ZFP", _zfp),
    Peer("JPEG 2000", "imagecodecs", "JPEG2K", _jpeg2000),
    Peer("JPEG XL", "imagecodecs", "JPEGXL", _jpegxl),
    Peer("HEVC", "av", None, _hevc),
)


def missing_library(peer: Peer) -> str | None:
    """Say what is not installed for a peer; None where all is there."""
    try:
        library = importlib.import_module(peer.library)
    except ImportError:
        return f"{peer.library} is not installed"
    if peer.part is not None and not getattr(library, peer.part).available:
        return f"this build of {peer.library} is without {peer.part}"
    if peer.part is None and "libx265" not in library.codecs_available:
        return f"this build of {peer.library} is without libx265"
    return None


def run_peer(
    peer: Peer, volume: np.ndarray, valid: np.ndarray | None, size_bytes: int
) -> PeerPoint:
    """Bring a codec to a size, or as close below it as it gets, and measure it.

    Parameters
    ----------
    peer : Peer
        One of `PEERS` with its library installed.
    volume : ndarray
        Three axes (z, y, x), finite, not constant.
    valid : ndarray of bool or None
        The voxels that count; None for all.
    size_bytes : int
        Where it cannot make the volume so small, its smallest is given.
    """
    coder = peer.bind(volume)
    setting, data = _nearest(coder, size_bytes)
    best = measure(volume, _restore(coder.decode(data), volume), valid)
    for step in range(1, coder.n_coarser + 1):
        other = coder.encode(min(coder.small, setting * 2 ** (step / coder.n_coarser)))
        if len(other) <= max(size_bytes, len(data)):
            quality = measure(volume, _restore(coder.decode(other), volume), valid)
            if quality.psnr > best.psnr:
                best, data = quality, other
    return PeerPoint(peer.name, size_bytes, len(data), best.psnr, best.max_error)


def _nearest(coder: _Coder, size_bytes: int) -> tuple[float, bytes | bytearray]:
    """Search between the settings; the largest stream that fits, or else the smallest there is."""
    found, best = coder.small, coder.encode(coder.small)
    if len(best) >= size_bytes:
        return found, best
    small, large = coder.small, coder.large
    if coder.logarithmic:
        small, large = math.log(small), math.log(large)
    for _ in range(_MAX_TRIALS):
        middle = (small + large) / 2
        setting = math.exp(middle) if coder.logarithmic else middle
        data = coder.encode(setting)
        if len(data) > size_bytes:
            large = middle
            continue
        small = middle
        if len(data) >= len(best):
            found, best = setting, data
        if len(best) >= (1 - _CLOSE) * size_bytes:
            break
    return found, best


def _restore(decoded: np.ndarray, like: np.ndarray) -> np.ndarray:
    dtype: np.dtype[Any] = like.dtype
    decoded = decoded.reshape(like.shape)
    if dtype.kind == "f":
        return decoded.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(decoded), limits.min, limits.max).astype(dtype)
