"""Records with arrays: one safetensors file, with everything else as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.files.records import PathLike, RecordError, check_header, reading, whole_file

Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays, ``[...]``, by name."""


_NARROW = (np.uint8, np.int16, np.float16, np.float32)


def narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers ``[...]`` in the smallest of some types that hold all of them exactly; truth values stay."""
    if array.dtype == np.bool_:
        return array
    for kind in _NARROW:
        with np.errstate(invalid="ignore", over="ignore"):
            found = array.astype(kind)
        if np.array_equal(found.astype(array.dtype), array, equal_nan=True):
            return found
    return array


class ArrayRecord(NamedTuple):
    """What such a file holds.

    Args:
        version: the schema version that it states; 0 if that is not a whole number.
        header: everything that is not an array.
        arrays: the arrays, ``[...]``, by name.
    """

    version: int
    header: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]


def write_arrays(
    path: PathLike, kind: str, version: int, header: Mapping[str, Any], arrays: Arrays
) -> None:
    """Write a record of this kind and schema version.

    Args:
        path: the file.
        kind: of the record.
        version: of its schema.
        header: plain data without NaN and infinity.
        arrays: arrays, ``[...]``, by name.
    """
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    told = json.dumps(dict(header), allow_nan=False)
    metadata = {"kind": kind, "version": str(version), "header": told}
    with whole_file(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            temporary,
            metadata=metadata,
        )


def read_arrays(path: PathLike, kind: str, *versions: int, again: str) -> ArrayRecord:
    """Read a record.

    Args:
        path: the file.
        kind: of the record.
        versions: the schema versions that are understood, the present one first.
        again: how to get the file anew, such as ``calibrate again``, for errors.

    Raises:
        RecordError: if it is not a safetensors file, or of another kind or schema version.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # a missing or unreadable file is an OSError, not a parse error
        pass
    try:
        reader: Any = safe_open(path, framework="numpy")
        with reader as file:
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            arrays: dict[str, npt.NDArray[Any]] = {n: file.get_tensor(n) for n in names}
    except SafetensorError as error:
        raise RecordError(
            f"{path} is not a readable safetensors file ({error}); {again}."
        ) from None
    told = metadata.get("version", "")
    version = int(told) if told.isdecimal() else 0
    found: object = version if version else told
    check_header(
        path, metadata.get("kind"), versions[0] if version in versions else found, kind, versions[0]
    )
    with reading(path):
        return ArrayRecord(version, json.loads(metadata["header"]), arrays)
