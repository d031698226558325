"""A post-filter applied with torch, for GPUs: the twin of `model.filtering`."""

from collections.abc import Sequence

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
    slab = min(voxels, 2 * _SLAB_VOXELS)
    return 4 * voxels + 4 * slab * (N_INPUTS + 2 * max(width, N_INPUTS) + 6)


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
        padded = F.pad(volume.clamp(0, 1)[None, None], (REACH,) * 6, mode="replicate")[0, 0]
        depth, height, length = volume.shape
        planes = max(1, _SLAB_VOXELS // (height * length))
        for first in range(0, depth, planes):
            part = volume[first : first + planes]
            near = padded[first : first + len(part) + 2 * REACH]
            part.copy_(_filter_slab(near, part.shape, parameters, postfilter, mean, middle, gain))


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
