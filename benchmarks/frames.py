"""Planes of a volume as the images that image and video codecs take, and x265 itself."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


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
    """Put planes (z, y, x) one below the other, every other one upside down, as (z * y, x)."""
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
    bright = ((values + 0.055) / 1.055) ** 2.4
    return np.where(values <= 0.04045, values / 12.92, bright).astype(np.float32)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """Turn linear light into sRGB values, float64; the twin of `srgb_to_linear`."""
    light = light.astype(np.float64)
    bright = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, 12.92 * light, bright)


def _pixel_format(frames: np.ndarray) -> str:
    return "gray" if frames.dtype == np.uint8 else "gray12le"


def hevc_encode(frames: np.ndarray, crf: float) -> bytes:
    """Encode frames (z, y, x), uint8 or 12 bits in uint16, with x265 `slow` at a rate factor."""
    import av

    context = av.CodecContext.create("libx265", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = frames.shape[1:]
    context.pix_fmt = _pixel_format(frames)
    context.framerate = 25
    context.time_base = Fraction(1, 25)
    # Without info=0 the encoder's own 2 kB description of itself would be counted. Frames of a
    # single 64 × 64 coding unit come out different in every run (by up to 1 dB at equal bytes);
    # with smaller units they do not.
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


def hevc_decode(data: bytes, like: np.ndarray) -> np.ndarray:
    """Decode what `hevc_encode` made of frames with the shape and dtype of `like`."""
    import av

    context = av.CodecContext.create("hevc", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    decoded = np.empty_like(like)
    position = 0
    for packet in [*context.parse(data), *context.parse(None), None]:
        for frame in context.decode(packet):
            decoded[position] = frame.to_ndarray(format=_pixel_format(like))
            position += 1
    assert position == len(like)
    return decoded
