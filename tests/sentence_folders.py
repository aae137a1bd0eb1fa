"""Folders as sentence-transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = "sentence_transformers.models"


def describe(
    folder: Path,
    pooling: dict[str, Any],
    *more: str,
    listed: bool = True,
    transformer: str = "",
) -> None:
    """Write what sentence-transformers writes beside a model.

    Args:
        folder: the folder.
        pooling: the configuration of the pooling.
        more: modules between the pooling and the normalisation, by class; with the package, if it is another.
        listed: whether there is a list of modules.
        transformer: the folder of the model itself, where that is not the folder.
    """
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = ["Transformer", "Pooling", *more, "Normalize"]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind.rpartition('.')[2]}" if i else transformer,
            "type": kind if "." in kind else f"{PACKAGE}.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    if listed:
        (folder / "modules.json").write_text(json.dumps(modules))
