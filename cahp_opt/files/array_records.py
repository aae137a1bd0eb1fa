"""Records with arrays: one safetensors file, with everything else as JSON in its header."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
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


_LENGTH, _ALIGNED = 8, 8  # bytes of the length of a header, and what a header is filled up to
_TYPES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The types of the format, in the order in which the library safetensors writes them."""
_NAMES = {name: kind for kind, name in _TYPES.items()}


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
    """Write a record of this kind and schema version, array after array, so that no copy of all of them is made.

    Args:
        path: the file.
        kind: of the record.
        version: of its schema.
        header: plain data without NaN and infinity.
        arrays: arrays, ``[...]``, by name.
    """
    told = json.dumps(dict(header), allow_nan=False)
    metadata = {"kind": kind, "version": str(version), "header": told}
    with whole_file(path) as temporary:
        _write(temporary, metadata, arrays)


def _write(path: Path, metadata: Mapping[str, str], arrays: Arrays) -> None:
    """Write a safetensors file as the format is described: the length of a header in JSON, the header, and the arrays
    end to end, the widest types first, so that all of them are aligned."""
    order = [*_NAMES]
    listed = sorted(arrays.items(), key=lambda pair: (order.index(pair[1].dtype.name), pair[0]))
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in listed:
        begin, end = end, end + array.nbytes
        kind = _NAMES[array.dtype.name]
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNED)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH, "little") + header)
        for _, array in listed:
            plain = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(plain).data)


def read_arrays(path: PathLike, kind: str, *versions: int, again: str) -> ArrayRecord:
    """Read a record. Its arrays are those of the file, mapped into memory: the system reads what is used, and may
    forget it again. They stay as they were where the file is replaced or removed.

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
        return ArrayRecord(version, json.loads(metadata["header"]), _mapped(path))


def _mapped(path: PathLike) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file that is known to be one, read-only."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = _LENGTH + int.from_bytes(memory[:_LENGTH], "little")
    entries: dict[str, Any] = json.loads(memory[_LENGTH:start])
    entries.pop("__metadata__", None)
    found: dict[str, npt.NDArray[Any]] = {}
    for name, entry in entries.items():
        kind = np.dtype(_TYPES[entry["dtype"]]).newbyteorder("<")
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(memory, kind, (end - begin) // kind.itemsize, start + begin)
        found[name] = np.require(flat.reshape(entry["shape"]), requirements="A")
    return found
