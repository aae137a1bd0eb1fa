"""Random draws that depend on an example, not on its position in the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from cahp_opt.torch.running.batches import Batch, batch_size, contents_of


def digests(batch: Batch) -> list[bytes]:
    """A digest of every example's real content: all its inputs, without padding and labels.

    It is the same whatever the order, the batching, the padding or the device.
    """
    hashes = [hashlib.sha256() for _ in range(batch_size(batch))]
    for key, value, real in contents_of(batch):
        floating = value.is_floating_point()
        array = value.detach().cpu().to(torch.float32 if floating else torch.int64)
        mask = None if real is None else real.cpu()
        for i, h in enumerate(hashes):
            row = array[i] if mask is None else array[i][mask[i]]
            h.update(f"{key}{list(row.shape)}".encode())
            h.update(np.ascontiguousarray(row.numpy()).tobytes())
    return [h.digest() for h in hashes]


def generators(contents: Sequence[bytes], seed: int, key: object) -> list[np.random.Generator]:
    """One generator per example, fixed by its digest, the seed and ``key``."""
    made: list[np.random.Generator] = []
    for content in contents:
        digest = hashlib.sha256(content + f"{seed}/{key!r}".encode()).digest()
        made.append(np.random.default_rng(int.from_bytes(digest, "little")))
    return made
