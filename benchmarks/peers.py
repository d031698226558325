"""Other lossy codecs, bisected to a size in bytes (`PEERS`) or bound to an error.

Every peer runs on one thread. Times are those of the setting that was chosen, without the search.
SPERR, SZ3 and ZFP (imagecodecs) get the volume as float32; HEVC (x265 `slow` through PyAV) gets
the z planes as frames, 8-bit data as it is and anything else mapped linearly to 12 bits.
JPEG 2000 and JPEG XL (imagecodecs) get the z planes one below the other in a single image, every
other one upside down so that there is no edge between them. One stream per plane takes more bytes,
for its headers (all of the budget beyond 100×) and because rate cannot move between planes: at 25×
JPEG XL needs 40 % more. JPEG 2000 gets 8-bit data as it is and anything else in 16 bits, JPEG XL
gets float32. The two numbers of a linear mapping are not counted. Integers come back rounded and
clipped to their dtype. `ERROR_BOUNDED` holds the peers that can promise a largest error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import records, volumes
from tinc_codec.metrics import measure, psnr
from tinc_codec.report.peers import PEERS as CODECS


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
        The peer's own setting: bits per voxel (SPERR, to a size), absolute error (SZ3, ZFP, and
        SPERR to an error), CRF (HEVC), PSNR of the full scale (JPEG 2000), distance (JPEG XL).
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
ErrorBounded = Callable[[np.ndarray, float], PeerResult]


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


def at_size(name: str, steps: int, scan: int = 0) -> Peer:
    """Make the function that brings one of the codecs of `tinc_codec.report` to a size.

    Parameters
    ----------
    name : str
    steps : int
        Of the bisection.
    scan : int
        Looser settings to try besides, for the best PSNR.
    """

    def peer(volume: np.ndarray, size_bytes: int) -> PeerResult:
        coder = _BINDINGS[name](volume)
        return _bisect(
            volume,
            size_bytes,
            coder.encode,
            coder.decode,
            small=coder.small,
            large=coder.large,
            steps=steps,
            logarithmic=coder.logarithmic,
            scan=scan,
        )

    return peer


_BINDINGS = {peer.name: peer.bind for peer in CODECS}
PEERS: dict[str, Peer] = {
    "SPERR": sperr,
    "SZ3": at_size("SZ3", steps=24, scan=48),
    "ZFP": at_size("ZFP", steps=24),
    "HEVC": at_size("HEVC", steps=9),
    "JPEG 2000": at_size("JPEG 2000", steps=16),
    "JPEG XL": at_size("JPEG XL", steps=12),
}


def sperr_bounded(volume: np.ndarray, max_error: float) -> PeerResult:
    """Encode with SPERR at a point-wise error."""
    import imagecodecs

    values = volume.astype(np.float32)
    return _bounded(
        volume,
        max_error,
        lambda bound: imagecodecs.sperr_encode(values, bound, "pwe", numthreads=1),
        lambda data: imagecodecs.sperr_decode(data, numthreads=1),
    )


def sz3_bounded(volume: np.ndarray, max_error: float) -> PeerResult:
    """Encode with SZ3 at an absolute error bound."""
    import imagecodecs

    values = volume.astype(np.float32)
    return _bounded(
        volume,
        max_error,
        lambda bound: imagecodecs.sz3_encode(values, mode="abs", abs=bound),
        lambda data: imagecodecs.sz3_decode(data, volume.shape, np.float32),
    )


def zfp_bounded(volume: np.ndarray, max_error: float) -> PeerResult:
    """Encode with ZFP at the loosest tolerance that keeps to the bound.

    Its errors stay far below its tolerance, so that tolerances up to 32 times the bound are tried.
    """
    import imagecodecs

    values = volume.astype(np.float32)
    return _bounded(
        volume,
        max_error,
        lambda bound: imagecodecs.zfp_encode(values, bound, mode="a", numthreads=1),
        imagecodecs.zfp_decode,
        looser=(32.0, 16.0, 8.0, 4.0, 2.0),
    )


ERROR_BOUNDED: dict[str, ErrorBounded] = {
    "SPERR": sperr_bounded,
    "SZ3": sz3_bounded,
    "ZFP": zfp_bounded,
}
"""(volume, largest absolute error in the data's units) → the result, which says whether it held."""


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
    return _measure(volume, encode, decode, small)


def _bounded(
    volume: np.ndarray,
    max_error: float,
    encode: Encode,
    decode: Decode,
    *,
    looser: tuple[float, ...] = (),
) -> PeerResult:
    """Encode at the loosest setting that keeps to the error: `looser` times it, it, or just below.

    Integers are rounded after decoding, which leaves almost half a unit more to the codec. Where no
    setting keeps to the bound the last result comes back, with a `max_error` above the bound.
    """
    bound = max_error
    if volume.dtype.kind != "f":
        bound = math.floor(max_error) + 0.499
    # The peers' own arithmetic is float32 and can pass the bound by a rounding.
    for factor in (*looser, 1.0, 1 - 1e-4, 1 - 1e-2):
        result = _measure(volume, encode, decode, factor * bound)
        if result.max_error <= max_error:
            break
    return result


def _measure(volume: np.ndarray, encode: Encode, decode: Decode, setting: float) -> PeerResult:
    start = time.perf_counter()
    data = encode(setting)
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
        setting=setting,
    )


def _restore(decoded: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "f":
        return decoded.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(decoded), limits.min, limits.max).astype(dtype)


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
