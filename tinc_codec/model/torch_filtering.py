"""A post-filter applied with torch, for GPUs: the twin of `model.filtering`."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F

from tinc_codec.model.filtering import ACTIVITY, FAR, FLOOR, NEAR
from tinc_codec.model.postfilter import N_INPUTS, OFFSETS, REACH, PostFilter, layer_table

_SLAB_VOXELS = 1 << 19
"""Voxels whose inputs are held at once."""


def slab_bytes(voxels: int, width: int) -> int:
    """Bound what filtering holds on a device beside a volume of t and what it becomes, in bytes.

    Parameters
    ----------
    voxels : int
        Of a volume, with its margin.
    width : int
        Of the widest hidden layer.
    """
    slab = min(voxels, _SLAB_VOXELS)
    # With its margin, the volume is there once clipped, and once more while it is made.
    return 4 * voxels + 4 * max(voxels, slab * (N_INPUTS + 2 * max(width, N_INPUTS) + 6))


def filter_on_device(values: torch.Tensor, postfilter: PostFilter) -> None:
    """Filter the whole of a chunk in place.

    Parameters
    ----------
    values : Tensor of float32
        Shape (B, z, y, x): t, not clipped.
    postfilter : PostFilter
    """
    parameters = torch.from_numpy(postfilter.parameters).to(values.device)
    mean, middle, gain = postfilter.conditioning.constants.tolist()
    for volume in values:
        padded = F.pad(
            volume.nan_to_num(nan=0.0).clamp_(0, 1)[None, None], (REACH,) * 6, mode="replicate"
        )[0, 0]
        slab = _slab_of(volume.shape)
        for corner in product(*(range(0, n, m) for n, m in zip(volume.shape, slab, strict=True))):
            part = volume[tuple(slice(i, i + m) for i, m in zip(corner, slab, strict=True))]
            near = padded[
                tuple(slice(i, i + m + 2 * REACH) for i, m in zip(corner, part.shape, strict=True))
            ]
            part.copy_(_filter_slab(near, part.shape, parameters, postfilter, mean, middle, gain))


def _slab_of(shape: torch.Size) -> tuple[int, int, int]:
    """Return the shape of the slabs that a volume is cut into: whole planes where they fit."""
    depth, height, length = shape
    run = min(length, _SLAB_VOXELS)
    rows = min(height, max(1, _SLAB_VOXELS // run))
    return min(depth, max(1, _SLAB_VOXELS // (run * rows))), rows, run


def _filter_slab(
    padded: torch.Tensor,
    shape: torch.Size,
    parameters: torch.Tensor,
    postfilter: PostFilter,
    mean: float,
    middle: float,
    gain: float,
) -> torch.Tensor:
    """Filter a slab; padded has `REACH` voxels more on every side than its shape."""

    def shifted(offset: Sequence[int]) -> torch.Tensor:
        where = tuple(
            slice(REACH + step, REACH + step + n) for step, n in zip(offset, shape, strict=True)
        )
        return padded[where]

    centre = shifted((0, 0, 0))
    inputs = torch.empty((N_INPUTS, *shape), device=padded.device)
    activity = torch.zeros(shape, device=padded.device)
    for row, offset in zip(inputs, OFFSETS.tolist(), strict=False):
        after = shifted(offset) - centre
        before = shifted([-step for step in offset]) - centre
        torch.add(after, before, out=row)
        activity += after.abs_().add_(before.abs_())
    activity.mul_(float(ACTIVITY)).add_(mean * float(FLOOR))
    inputs[: len(OFFSETS)].div_(activity)
    near, far, own = inputs[len(OFFSETS) :]
    near.copy_(4 * activity / (activity + mean * float(NEAR)) - 2)
    far.copy_(4 * activity / (activity + mean * float(FAR)) - 2)
    own.copy_((centre - middle) * gain)
    x = inputs.reshape(N_INPUTS, -1)
    table = layer_table(postfilter.widths).tolist()
    for layer, (weight, bias, n_out, n_in) in enumerate(table):
        matrix = parameters[weight:bias].reshape(n_out, n_in)
        x = torch.addmm(parameters[bias : bias + n_out, None], matrix, x)
        if layer < len(table) - 1:
            x.relu_()
    return centre + activity * x.reshape(shape)
