"""Loss and gradient of a batch of trees: compiled on the CPU, torch's autograd elsewhere."""

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from tinc_codec.fit import fused
from tinc_codec.model.octree_mlp import TreeShape
from tinc_codec.model.torch_tree import TorchTree


class Gradient(Protocol):
    """Evaluates the mean square error of models on sampled voxels."""

    def __call__(
        self, parameters: torch.Tensor, starts: np.ndarray, strides: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return loss [model] and gradient [model, parameter] for parameters [model, parameter].

        The gradient may be a buffer that the next call writes again.
        """
        ...

    def close(self) -> None:
        """Release threads and memory."""
        ...


def sample_positions(
    extents: np.ndarray, starts: np.ndarray, strides: np.ndarray, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expand lattices to voxel numbers.

    Returns
    -------
    index : ndarray of int64
        Shape (leaf, sample), into a leaf's packed block; 0 where a leaf has fewer voxels.
    present : ndarray of bool
        Which of them are samples.
    """
    counts = np.maximum(extents.prod(axis=1), 1)[:, None]
    s = np.arange(samples)[None, :]
    present = s < extents.prod(axis=1)[:, None]
    index = (starts[:, None] + s * strides[:, None]) % counts
    return np.where(present, index, 0), present


class FusedGradient:
    """The compiled kernel of `fit.fused`, its tasks split over threads.

    Parameters
    ----------
    shape : TreeShape
    blocks : ndarray of float32
        Shape (model, leaf, voxel), from `volume.partition`.
    weights : ndarray of uint8 or None
        Same shape: 1 where a voxel counts, 0 where not.
    samples : int
        Voxels per leaf and step, at most.
    threads : int
    """

    def __init__(
        self,
        shape: TreeShape,
        blocks: np.ndarray,
        weights: np.ndarray | None,
        samples: int,
        threads: int,
    ) -> None:
        models = len(blocks)
        self._tasks_per_model = shape.children[0] if shape.levels > 1 else 1
        tasks = models * self._tasks_per_model
        root_size = shape.tensors[2 * shape.layers[0] - 1].stop
        self._root_size = root_size if shape.levels > 1 else 0
        self._gradient = np.zeros((models, shape.parameter_count), dtype=np.float32)
        self._root_gradient = np.zeros((tasks, self._root_size), dtype=np.float32)
        self._loss = np.zeros(tasks, dtype=np.float64)
        counting = np.full(models, shape.leaf_extents.prod(axis=1).sum())
        if weights is not None:
            counting = weights.reshape(models, -1).sum(axis=1, dtype=np.int64)
        self._fixed = (
            np.ascontiguousarray(blocks),
            np.zeros((0, 0, 0), np.uint8) if weights is None else np.ascontiguousarray(weights),
            (1.0 / np.maximum(counting, 1)).astype(np.float32),
            shape.leaf_paths,
            shape.leaf_origins,
            shape.leaf_extents,
            shape.coordinate_map,
            np.array(shape.axes),
            np.float32(shape.w0),
            shape.max_width,
        )
        self._samples = min(samples, int(shape.leaf_extents.prod(axis=1).max()))
        threads = max(1, min(threads, tasks))
        bounds = [tasks * i // threads for i in range(threads + 1)]
        self._shares = list(pairwise(bounds))
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def __call__(
        self, parameters: torch.Tensor, starts: np.ndarray, strides: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Gradient`."""
        self._gradient.fill(0)
        values = parameters.numpy()

        def work(share: tuple[int, int]) -> None:
            fused.loss_and_gradient(
                values, *self._fixed, starts, strides, self._samples, self._root_size, *share,
                self._tasks_per_model, self._gradient, self._root_gradient, self._loss,
            )  # fmt: skip

        waiting: list[Future[None]] = []
        if self._pool is not None:
            waiting = [self._pool.submit(work, share) for share in self._shares[1:]]
        work(self._shares[0])
        for future in waiting:
            future.result()
        models = len(values)
        by_model = self._root_gradient.reshape(models, self._tasks_per_model, -1)
        self._gradient[:, : self._root_size] += by_model.sum(axis=1)
        loss = self._loss.reshape(models, -1).sum(axis=1)
        return torch.from_numpy(loss.astype(np.float32)), torch.from_numpy(self._gradient)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class TorchGradient:
    """The same through autograd, for GPUs and as the reference; parameters as in `FusedGradient`.

    References
    ----------
    `FusedGradient`; `device` replaces `threads`.
    """

    def __init__(
        self,
        shape: TreeShape,
        blocks: np.ndarray,
        weights: np.ndarray | None,
        samples: int,
        device: str,
    ) -> None:
        self._shape = shape
        self._device = device
        self._tree = TorchTree(shape, device)
        self._samples = min(samples, int(shape.leaf_extents.prod(axis=1).max()))
        self._blocks = torch.from_numpy(blocks).to(device)
        self._weights = None if weights is None else torch.from_numpy(weights).to(device)
        counts = shape.leaf_extents.prod(axis=1)
        total = (
            torch.full((len(blocks),), float(counts.sum()), device=device)
            if self._weights is None
            else self._weights.sum(dim=(1, 2)).clamp(min=1).float()
        )
        per_leaf = torch.from_numpy(counts / np.maximum(np.minimum(counts, self._samples), 1))
        self._factor = per_leaf.to(device, torch.float32)[None, :, None] / total[:, None, None]
        self._axes = torch.tensor(shape.axes, device=device)
        self._origins = torch.from_numpy(shape.leaf_origins).to(device)
        self._extents = torch.from_numpy(np.maximum(shape.leaf_extents, 1)).to(device)
        self._step, self._shift = torch.from_numpy(shape.coordinate_map).to(device)

    def __call__(
        self, parameters: torch.Tensor, starts: np.ndarray, strides: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Gradient`."""
        index_cpu, present_cpu = sample_positions(
            self._shape.leaf_extents, starts, strides, self._samples
        )
        index = torch.from_numpy(index_cpu).to(self._device)
        present = torch.from_numpy(present_cpu).to(self._device)
        row = index // self._extents[:, 2, None]
        position = torch.stack(
            [
                row // self._extents[:, 1, None],
                row % self._extents[:, 1, None],
                index % self._extents[:, 2, None],
            ],
            dim=-1,
        )
        coordinates = (position + self._origins[:, None]) * self._step - self._shift
        gather = index.expand(len(parameters), *index.shape)
        target = torch.gather(self._blocks, 2, gather)
        factor = self._factor * present
        if self._weights is not None:
            factor = factor * torch.gather(self._weights, 2, gather)
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            error = self._tree(leaf, coordinates[:, :, self._axes]) - target
            loss = (factor * error.square()).sum(dim=(1, 2))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def close(self) -> None:
        """Nothing to release."""


def gradient_for(
    shape: TreeShape,
    blocks: np.ndarray,
    weights: np.ndarray | None,
    samples: int,
    device: str,
    threads: int,
) -> Gradient:
    """Choose the implementation for a device; parameters as in `FusedGradient`."""
    if device == "cpu":
        return FusedGradient(shape, blocks, weights, samples, threads)
    return TorchGradient(shape, blocks, weights, samples, device)
