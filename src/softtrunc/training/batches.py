"""Batches of images, and of their labels, on the training device."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from softtrunc.sde import send
from softtrunc.training.randomness import DataOrder

RESIDENT_BYTES = 2 << 30
"""Images are held whole on the device up to this size; more stay where they are."""


class BatchSource:
    """Hands out one process's share of each step's batch.

    Small data live on the device as they are stored. Larger ones (memory-mapped arrays) are
    gathered by a thread that is one step ahead, so that reading overlaps with computing.

    Args:
        images: uint8 array (N, C, H, W), or one of floats, in memory or memory-mapped.
        labels: int64 (N,); None: there are none.
        order: which examples belong to which step.
        batch_size: of the optimiser step, over all processes.
        share: the slice of each batch that this process takes.
        device: where the batches go.
    """

    def __init__(
        self,
        images: np.ndarray,
        order: DataOrder,
        *,
        batch_size: int,
        share: slice,
        device: torch.device,
        labels: np.ndarray | None = None,
    ) -> None:
        self._images = images
        self._labels = None if labels is None else torch.from_numpy(np.array(labels)).to(device)
        self._order = order
        self._batch_size = batch_size
        self._share = share
        self._device = device
        self._resident: Tensor | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[Tensor]] | None = None
        if images.nbytes <= RESIDENT_BYTES:
            # Of a memory map a copy: it is read-only, tensors are not.
            self._resident = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(
                device
            )
        else:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="softtrunc-read")

    def __enter__(self) -> BatchSource:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _indices(self, step: int) -> Tensor:
        return self._order.batch(step, self._batch_size)[self._share]

    def _gather(self, step: int) -> Tensor:
        # Ascending rows read a memory map front to back; the batch's own order is put back after.
        indices, order = self._indices(step).sort()
        rows = torch.from_numpy(np.ascontiguousarray(self._images[indices.numpy()]))
        batch = torch.empty_like(rows, pin_memory=self._device.type == "cuda")
        batch[order] = rows
        return batch

    def labels(self, step: int) -> Int64[Tensor, " b"]:
        """The labels of this process's share of the batch of `step`.

        Raises:
            ValueError: if there are none.
        """
        if self._labels is None:
            raise ValueError("labels: the data have none: give a data set with labels")
        return self._labels[send(self._indices(step), self._device)]

    def batch(self, step: int) -> Shaped[Tensor, "b c h w"]:
        """This process's share of the batch of `step`."""
        if self._pool is None:
            assert self._resident is not None  # one of the two always exists
            return self._resident[send(self._indices(step), self._device)]
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._pool.submit(self._gather, step))
        ready = self._ahead[1].result()
        self._ahead = (step + 1, self._pool.submit(self._gather, step + 1))
        return send(ready, self._device)
