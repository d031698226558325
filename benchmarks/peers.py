"""Other lossy codecs, each bisected to a size in bytes: SPERR, SZ3, ZFP and HEVC.

Every peer runs on one thread. Times are those of the setting that was chosen, without the search.
SPERR, SZ3 and ZFP (imagecodecs) get the volume as float32; HEVC (x265 `slow` through PyAV) gets
the z planes as frames, 8-bit data as it is and anything else mapped linearly to 12 bits, the two
numbers of that mapping not counted. Integers come back rounded and clipped to their dtype.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks import records, volumes
from tinc_codec.metrics import measure, psnr


class SizeNotReached(Exception):
    """The peer cannot make the volume as small as asked."""


@dataclass(frozen=True, kw_only=True)
class PeerResult:
    """What a peer made of a volume at a size.

    Parameters
    ----------
    size_bytes : int
        Encoded bytes, at most those asked for.
    psnr : float
        In dB, the volume's own max − min as peak.
    max_error : float
        Largest absolute error in the data's units.
    encode_s, decode_s : float
        Seconds on one thread.
    setting : float
        The peer's own setting: bits per voxel (SPERR), absolute error (SZ3, ZFP), CRF (HEVC).
    """

    size_bytes: int
    psnr: float
    max_error: float
    encode_s: float
    decode_s: float
    setting: float


Encode = Callable[[float], bytes]
Decode = Callable[[bytes], np.ndarray]
Peer = Callable[[np.ndarray, int], PeerResult]


def sperr(volume: np.ndarray, size_bytes: int) -> PeerResult:
    """Encode with SPERR at a fixed number of bits per voxel."""
    import imagecodecs

    values = volume.astype(np.float32)
    upper = 8.0 * size_bytes / volume.size
    return _bisect(
        volume,
        size_bytes,
        lambda bits: imagecodecs.sperr_encode(values, bits, "bpp", numthreads=1),
        lambda data: imagecodecs.sperr_decode(data, numthreads=1),
        small=upper / 4,
        large=upper,
        steps=16,
    )


def sz3(volume: np.ndarray, size_bytes: int) -> PeerResult:
    """Encode with SZ3 at an absolute error bound."""
    import imagecodecs

    values = volume.astype(np.float32)
    span = float(values.max()) - float(values.min())
    return _bisect(
        volume,
        size_bytes,
        lambda bound: imagecodecs.sz3_encode(values, mode="abs", abs=bound),
        lambda data: imagecodecs.sz3_decode(data, volume.shape, np.float32),
        small=span,
        large=span * 1e-6,
        steps=24,
        logarithmic=True,
        scan=48,
    )


def zfp(volume: np.ndarray, size_bytes: int) -> PeerResult:
    """Encode with ZFP at an absolute error tolerance (a power of two in effect)."""
    import imagecodecs

    values = volume.astype(np.float32)
    span = float(values.max()) - float(values.min())
    return _bisect(
        volume,
        size_bytes,
        lambda bound: imagecodecs.zfp_encode(values, bound, mode="a", numthreads=1),
        imagecodecs.zfp_decode,
        small=span * 1e5,
        large=span * 1e-6,
        steps=24,
        logarithmic=True,
    )


def hevc(volume: np.ndarray, size_bytes: int) -> PeerResult:
    """Encode with x265, preset `slow`, at a constant rate factor."""
    if volume.dtype == np.uint8:
        low, scale, frames = 0.0, 1.0, volume
    else:
        low = float(volume.min())
        scale = (float(volume.max()) - low) / 4095 or 1.0
        frames = np.rint((volume - np.float64(low)) / scale).astype(np.uint16)
    height, width = frames.shape[1:]
    # x265 corrupts its own memory on some frames smaller than 64 × 64.
    missing = [(0, max(0, 64 - size)) for size in (height, width)]
    frames = np.pad(frames, [(0, 0), *missing], mode="edge")
    return _bisect(
        volume,
        size_bytes,
        lambda crf: _hevc_encode(frames, crf),
        lambda data: _hevc_decode(data, frames)[:, :height, :width] * scale + low,
        small=51.0,
        large=0.0,
        steps=9,
    )


PEERS: dict[str, Peer] = {"SPERR": sperr, "SZ3": sz3, "ZFP": zfp, "HEVC": hevc}


def _bisect(
    volume: np.ndarray,
    size_bytes: int,
    encode: Encode,
    decode: Decode,
    *,
    small: float,
    large: float,
    steps: int,
    logarithmic: bool = False,
    scan: int = 0,
) -> PeerResult:
    """Find the setting nearest to `large` whose bytes still fit, then time it.

    `small` is the setting that gives the fewest bytes, `large` the one that gives the most. Where a
    looser error bound can give a better PSNR (SZ3), `scan` settings up to twice the one found are
    tried as well and the best is taken.
    """

    def fits(setting: float) -> bool:
        return len(encode(setting)) <= size_bytes

    if not fits(small):
        raise SizeNotReached(f"{len(encode(small))} bytes at least, {size_bytes} asked for")
    if fits(large):
        small = large
    else:
        for _ in range(steps):
            middle = math.sqrt(small * large) if logarithmic else (small + large) / 2
            if fits(middle):
                small = middle
            else:
                large = middle
    candidates = [small * 2 ** (step / scan) for step in range(scan)]
    if candidates:
        small = max(
            (setting for setting in candidates if fits(setting)),
            key=lambda setting: psnr(volume, _restore(decode(encode(setting)), volume.dtype)),
        )
    start = time.perf_counter()
    data = encode(small)
    encoded = time.perf_counter()
    decoded = decode(data)
    end = time.perf_counter()
    quality = measure(volume, _restore(decoded, volume.dtype))
    return PeerResult(
        size_bytes=len(data),
        psnr=quality.psnr,
        max_error=quality.max_error,
        encode_s=encoded - start,
        decode_s=end - encoded,
        setting=small,
    )


def _restore(decoded: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return decoded.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(decoded), limits.min, limits.max).astype(dtype)


def _pixel_format(frames: np.ndarray) -> str:
    return "gray" if frames.dtype == np.uint8 else "gray12le"


def _hevc_encode(frames: np.ndarray, crf: float) -> bytes:
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


def _hevc_decode(data: bytes, like: np.ndarray) -> np.ndarray:
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


def main() -> None:
    """Measure peers on central crops, print a line for each and keep them all as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    volumes.add_arguments(parser)
    parser.add_argument("--ratios", nargs="+", type=float, default=[16, 64, 256])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--name", help="stem of the results' file (default: peers_<crop>)")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.volumes:
        volume = volumes.load(name, arguments.crop, arguments.data)
        for ratio in arguments.ratios:
            asked = int(volume.nbytes / ratio)
            for peer in arguments.peers:
                try:
                    result = PEERS[peer](volume, asked)
                except SizeNotReached as limit:
                    print(f"{name} {ratio:g}x {peer}: {limit}", flush=True)
                    continue
                rows.append({"volume": name, "ratio": ratio, "codec": peer, **asdict(result)})
                print(
                    f"{name} {ratio:g}x {peer}: {result.psnr:.2f} dB, "
                    f"max error {result.max_error:.4g}, {result.size_bytes} of {asked} bytes, "
                    f"encode {result.encode_s:.3f} s, decode {result.decode_s:.3f} s",
                    flush=True,
                )
    path = records.save(arguments.name or f"peers_{arguments.crop}", rows, crop=arguments.crop)
    print(f"kept in {path.name}")


if __name__ == "__main__":
    main()
