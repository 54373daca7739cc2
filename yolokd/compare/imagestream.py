"""A running hash of the training batches, to show that two runs saw the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

KEYS = ("img", "batch_idx", "cls", "bboxes", "masks", "keypoints")  # what a model learns from; paths are left out


class StreamHash:
    """Chained BLAKE2b hash of every batch's images and labels, in order.

    Batches are hashed beside the training step, on one thread: an update only waits for the batch before. Call it with
    the batch as the data loader gave it, before the trainer scales or moves it; the images must not be changed in
    place afterwards. Two streams have one digest only if all batches agree in order, shape, type and every byte.

    Attributes:
        batches (int): Number of batches so far.
    """

    def __init__(self) -> None:
        """Begin an empty stream."""
        self.batches = 0
        self._digest = b""
        self._pending: Future[bytes] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def update(self, batch: Mapping[str, Any]) -> None:
        """Add one batch.

        Args:
            batch (Mapping[str, Any]): Batch of the data loader; its tensors `img`, `batch_idx`, `cls`, `bboxes`,
                `masks` and `keypoints` count, as far as they are there.

        Raises:
            KeyError: If the batch has no images.
        """
        if not isinstance(batch.get("img"), torch.Tensor):
            raise KeyError("the batch has no tensor 'img'")
        parts = [(key, batch[key].detach().cpu()) for key in KEYS if isinstance(batch.get(key), torch.Tensor)]
        parts = [(key, tensor if key == "img" else tensor.clone()) for key, tensor in parts]  # labels are small
        previous = self._settle()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="yolokd-stream-hash")
        self._pending = self._pool.submit(_chain, previous, parts)
        self.batches += 1

    def hexdigest(self) -> str:
        """Return the digest of all batches so far, 32 hex digits; of an empty stream that of nothing."""
        return hashlib.blake2b(self._settle(), digest_size=16).hexdigest()

    def state(self) -> dict[str, Any]:
        """Return plain values from which `load` goes on."""
        return {"digest": self._settle().hex(), "batches": self.batches}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, e.g. when a run is resumed.

        Args:
            state (Mapping[str, Any]): What `state` returned.
        """
        self._settle()
        self._digest, self.batches = bytes.fromhex(state["digest"]), int(state["batches"])

    def close(self) -> None:
        """End the thread; a later update starts another one."""
        self._settle()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _settle(self) -> bytes:
        """Wait for the batch that is being hashed and return the chain's end."""
        if self._pending is not None:
            self._digest, self._pending = self._pending.result(), None
        return self._digest

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles carry: no thread."""
        return self.state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build a copy."""
        self.__init__()  # type: ignore[misc]
        self.load(state)


def _chain(previous: bytes, parts: list[tuple[str, torch.Tensor]]) -> bytes:
    """Return the hash of the chain so far and one batch."""
    digest = hashlib.blake2b(previous, digest_size=32)
    for key, tensor in parts:
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.contiguous().reshape(-1)
        content: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""  # bytes of any type
        digest.update(content)
    return digest.digest()
