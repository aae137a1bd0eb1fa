"""Random draws that belong to an example, not to its place in the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cahp_opt.torch.batching import Batch, batch_size, inputs_of, real_tokens


def digests(batch: Batch) -> list[bytes]:
    """A digest of every example's real content: all its inputs, without padding and labels.

    It is the same whatever the order, the batching, the padding or the device.
    """
    size = batch_size(batch)
    mask = real_tokens(batch).cpu()
    hashes = [hashlib.sha256() for _ in range(size)]
    for key, value in sorted(inputs_of(batch).items()):
        if key == "attention_mask" or not isinstance(value, Tensor) or not value.ndim:
            continue
        if value.shape[0] != size:
            continue
        floating = value.is_floating_point()
        array = value.detach().cpu().to(torch.float32 if floating else torch.int64)
        padded = array.ndim > 1 and array.shape[1] == mask.shape[1]
        for i, h in enumerate(hashes):
            row = array[i][mask[i]] if padded else array[i]
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
