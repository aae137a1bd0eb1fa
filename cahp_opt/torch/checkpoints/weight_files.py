"""The files that hold a saved model's weights: whose they are, and what the stock loader cannot find."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

from cahp_opt.files.records import RecordError

STEM = "cahp_weights"
"""Weights are written as ``cahp_weights.safetensors``, or shards with an index of such a name. No option of
the stock loader makes such a name: all of its names begin with ``model`` or ``pytorch_model``."""

_INDEX = ".safetensors.index.json"


class Writer(Enum):
    """Who wrote a folder's weights."""

    CAHP = "`cahp_opt.torch.save_pretrained`"
    CAHP_EARLIER = "`cahp_opt.torch.save_pretrained` of an earlier release"
    STOCK = "the stock `save_pretrained`"
    STOCK_PICKLED = "the stock `save_pretrained`, pickled"


_NAMES = {
    f"{STEM}.safetensors": Writer.CAHP,
    f"{STEM}{_INDEX}": Writer.CAHP,
    "model.cahp.safetensors": Writer.CAHP_EARLIER,
    "model.safetensors.index.cahp.json": Writer.CAHP_EARLIER,
    "model.safetensors": Writer.STOCK,
    f"model{_INDEX}": Writer.STOCK,
    "pytorch_model.bin": Writer.STOCK_PICKLED,
    "pytorch_model.bin.index.json": Writer.STOCK_PICKLED,
}


def weights_in(folder: Path) -> tuple[str, Writer] | None:
    """The file with a folder's weights, or with the index of their shards, and who wrote it.

    Raises:
        RecordError: if there are several, because nothing shows which of them is meant.
    """
    found = [name for name in _NAMES if (folder / name).is_file()]
    if len(found) > 1:
        sets = " and ".join(f"{name} (from {_NAMES[name].value})" for name in found)
        latest = max(found, key=lambda name: (folder / name).stat().st_mtime_ns)
        raise RecordError(
            f"{folder} holds {len(found)} sets of weights, {sets}; the last one written is {latest}. Move "
            "the others away, with their shards if they are an index, and save what is trained to a folder of "
            "its own."
        )
    return (found[0], _NAMES[found[0]]) if found else None


def hide_from_stock(folder: Path) -> None:
    """Rename the weights that the stock ``save_pretrained`` has just written to a new folder."""
    single, index = folder / "model.safetensors", folder / f"model{_INDEX}"
    if single.is_file():
        single.rename(folder / f"{STEM}.safetensors")
        return
    record = json.loads(index.read_text(encoding="utf-8"))
    renamed = {name: _renamed(name) for name in sorted(set(record["weight_map"].values()))}
    for old, new in renamed.items():
        (folder / old).rename(folder / new)
    record["weight_map"] = {key: renamed[name] for key, name in record["weight_map"].items()}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (folder / f"{STEM}{_INDEX}").write_text(text, encoding="utf-8")
    index.unlink()


def _renamed(shard: str) -> str:
    return STEM + shard.removeprefix("model")
