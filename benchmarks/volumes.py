"""The real volumes that everything is measured on, as central crops."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

DEFAULT_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

# `nuclei_light_microscopy` and `tinc_sample` are smaller than 64 voxels along an axis: whole only.
NAMES = (
    "ct_angio",
    "ct_cranium",
    "macaque_t1_float32",
    "mni152_t1",
    "mri_flair",
    "mri_t1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, `--volumes` and `--crop` to a benchmark's command line."""
    parser.add_argument("--data", type=Path, help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volumes", nargs="+", default=list(NAMES), metavar="NAME")
    parser.add_argument("--crop", type=int, default=128, help="edge of the central crop in voxels")


def data_directory(data: Path | str | None = None) -> Path:
    """Return the directory that holds the volumes.

    Parameters
    ----------
    data : path, optional
        Taken as it is; otherwise the environment variable TINC_DATA, otherwise `../shared/data`
        beside the repository.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    """
    directory = Path(data or os.environ.get("TINC_DATA") or DEFAULT_DATA)
    if not directory.is_dir():
        raise FileNotFoundError(f"no volumes at {directory}: give --data or set TINC_DATA")
    return directory


def central_crop(volume: np.ndarray, edge: int) -> np.ndarray:
    """Return the central crop, at most `edge` voxels along each axis, as a C-order copy."""
    window = tuple(
        slice((size - kept) // 2, (size - kept) // 2 + kept)
        for size in volume.shape
        for kept in (min(size, edge),)
    )
    return np.ascontiguousarray(volume[window])


def load(name: str, crop: int | None = None, data: Path | str | None = None) -> np.ndarray:
    """Load a volume, axes (z, y, x), whole or as its central crop.

    Raises
    ------
    FileNotFoundError
        If the directory or the volume is missing.
    """
    with np.load(data_directory(data) / f"{name}.npz") as archive:
        volume: np.ndarray = archive["volume"]
    return volume if crop is None else central_crop(volume, crop)
