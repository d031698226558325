"""Chunks decoded on the GPU and left there as torch tensors; on the CPU where there is no GPU.

python examples/gpu_read.py [FOLDER]

FOLDER is where the store goes, a temporary folder by default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import zarr

from tinc_codec import TINC, config
from tinc_codec.torch_buffer import enable

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"
CHUNKS = (32, 32, 32)


def main(folder: str) -> None:
    """Write a volume, read it as tensors and compute with them where they are."""
    volume = np.load(VOLUME)["volume"][16:80, 32:96, 32:96]
    path = Path(folder) / "brain.zarr"
    codec = TINC(ratio=16, effort=0)
    zarr.create_array(path, data=volume, chunks=CHUNKS, serializer=codec, compressors=None)

    # How many chunks a launch gets: an array takes the setting when it is opened. What a launch
    # may hold of the device's memory is a setting of ours; more chunks take several launches.
    with zarr.config.set({"codec_pipeline.batch_size": 64}), config.set(device_memory_bytes=2**30):
        brain = zarr.open_array(path, mode="r")
        with enable():
            voxels = brain[:]
            plane = brain[32, ::2]
    assert isinstance(voxels, torch.Tensor)
    print(f"{tuple(voxels.shape)} {voxels.dtype} on {voxels.device}")

    # No copy to the host: a batch for a network, say, or a projection.
    batch = voxels.float().unfold(0, 32, 32).unfold(1, 32, 32).unfold(2, 32, 32)
    means = batch.mean(dim=(-1, -2, -3))
    print(f"mean of each of {means.numel()} chunks: {means.min():.1f} to {means.max():.1f}")
    print(f"a plane: {tuple(plane.shape)} on {plane.device}")
    error = (voxels.float() - torch.from_numpy(volume).to(voxels.device)).square().mean()
    print(f"PSNR {10 * torch.log10(float(np.ptp(volume)) ** 2 / error):.2f} dB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
