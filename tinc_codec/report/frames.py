"""Planes of a volume as the images that image and video codecs take, and x265 itself."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

__all__ = [
    "from_strip",
    "hevc_decode",
    "hevc_encode",
    "linear_to_srgb",
    "srgb_to_linear",
    "to_frames",
    "to_strip",
]

# x265 corrupts its own memory on some frames smaller than this.
_LEAST_EDGE = 64


def to_frames(volume: np.ndarray, bits: int) -> tuple[np.ndarray, float, float]:
    """Give uint8 as it is, all else mapped to the whole of `bits`; values = frames * scale + low.

    Returns
    -------
    frames : ndarray of uint8 or uint16
    scale, low : float
    """
    if volume.dtype == np.uint8:
        return volume, 1.0, 0.0
    low = float(volume.min())
    scale = (float(volume.max()) - low) / (2**bits - 1) or 1.0
    return np.rint((volume - np.float64(low)) / scale).astype(np.uint16), scale, low


def to_strip(planes: np.ndarray) -> np.ndarray:
    """Put planes (z, y, x) one below the other, every other one upside down, as (z * y, x).

    A stream per plane would take more bytes, and rate could not move from plane to plane.
    """
    turned = planes.copy()
    turned[1::2] = planes[1::2, ::-1]
    return turned.reshape(-1, planes.shape[2])


def from_strip(strip: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the planes (z, y, x) of a strip back; the twin of `to_strip`."""
    planes = strip.reshape(shape)
    turned = planes.copy()
    turned[1::2] = planes[1::2, ::-1]
    return turned


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Turn sRGB values in [0, 1] into linear light, float32 (IEC 61966-2-1)."""
    bright = ((np.maximum(values, 0.0) + 0.055) / 1.055) ** 2.4
    return np.where(values <= 0.04045, values / 12.92, bright).astype(np.float32)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """Turn linear light into sRGB values, float64; the twin of `srgb_to_linear`."""
    light = light.astype(np.float64)
    bright = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, bright)


def hevc_encode(frames: np.ndarray, crf: float) -> bytes:
    """Encode frames (z, y, x), uint8 or 12 bits in uint16, with x265 `slow` at a rate factor."""
    import av

    frames = _padded(frames)
    context: Any = av.CodecContext.create("libx265", "w")
    context.height, context.width = frames.shape[1:]
    context.pix_fmt = _pixel_format(frames)
    context.framerate = 25
    context.time_base = Fraction(1, 25)
    # Without info=0 the encoder's own 2 kB description of itself would be counted. Frames of a
    # single 64 × 64 coding unit come out different in every run; with smaller units they do not.
    unit = 64 if min(frames.shape[1:]) > 64 else 32
    settings = f"crf={crf}:ctu={unit}:info=0:pools=none:frame-threads=1:log-level=none"
    context.options = {"preset": "slow", "x265-params": settings}
    packets = []
    for number, plane in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(plane, format=context.pix_fmt)
        frame.pts, frame.time_base = number, context.time_base
        packets += context.encode(frame)
    packets += context.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def hevc_decode(data: bytes | bytearray, like: np.ndarray) -> np.ndarray:
    """Decode what `hevc_encode` made of frames with the shape and dtype of `like`."""
    import av

    context: Any = av.CodecContext.create("hevc", "r")
    context.thread_count = 1
    planes = []
    for packet in [*context.parse(bytes(data)), *context.parse(None), None]:
        planes += [frame.to_ndarray(format=_pixel_format(like)) for frame in context.decode(packet)]
    height, width = like.shape[1:]
    return np.stack(planes)[:, :height, :width]


def _padded(frames: np.ndarray) -> np.ndarray:
    missing = [(0, max(0, _LEAST_EDGE - size)) for size in frames.shape[1:]]
    return np.pad(frames, [(0, 0), *missing], mode="edge")


def _pixel_format(frames: np.ndarray) -> str:
    return "gray" if frames.dtype == np.uint8 else "gray12le"
