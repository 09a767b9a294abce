"""NumPy's .npz archives of plain arrays with a header in JSON: written whole, read with suspicion.

A file may be cut off, damaged or made by somebody else. What it declares is checked against its
size before memory is taken for it, every byte of an array against the checksum that is stored with
it (CRC-32, as in every zip archive), and nothing that it holds is run.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gflow._description import plain
from gflow._files import replacing

_HEADER = "header"

# Arrays are stored as they are. Compressed ones, of somebody who packed the file again, may unpack
# to so many times the size of the file: doubles of a run hardly get to 10, a bomb to 1000.
_MOST_UNPACKED = 100
_SLACK = 2**20

_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# Real numbers and text. Objects would be pickles, whose reading runs whatever they hold.
_KINDS = "biufU"


class Damaged(ValueError):
    """What was read is no archive of gflow, or no longer one."""


def write_archive(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Writes `header` and `arrays` to `path`, which stays as it was where that fails.

    Args:
        header: JSON, and values that `plain` turns into such.
        arrays: by name; none is called "header".
    """
    text = np.asarray(json.dumps(header, default=plain))
    tables = {_HEADER: text, **arrays}
    with replacing(path) as handle:
        np.savez(handle, **tables)  # pyright: ignore[reportArgumentType]


def read_archive(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of the file at `path`.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is no such archive, or damaged.
    """
    try:
        with open(path, "rb") as handle:
            return _read(handle)
    except FileNotFoundError:
        raise
    # Damage shows as anything: zlib and struct errors, RecursionError of JSON that is nested
    # deep, RuntimeError of encryption, NotImplementedError of unknown compression, MemoryError.
    except Exception as error:
        raise Damaged(_reason(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case RecursionError():
            return "its header is nested too deep"
        case MemoryError():
            return "what it declares does not fit into memory"
        case OSError():
            return error.strerror or str(error)
        case zipfile.BadZipFile():
            return f"it is damaged: {error}"
    return str(error) or type(error).__name__


def _read(handle: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not zipfile.is_zipfile(handle):
        raise Damaged("it is no .npz file")
    handle.seek(0)
    with zipfile.ZipFile(handle) as archive:
        _check_sizes(archive, os.fstat(handle.fileno()).st_size)
        arrays = {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    if _HEADER not in arrays:
        raise Damaged("it holds no header")
    text = arrays.pop(_HEADER)
    if text.dtype.kind != "U" or text.ndim:
        raise Damaged("its header is no text")
    header = json.loads(str(text))
    if not isinstance(header, dict):
        raise Damaged("its header is of another kind")
    return header, arrays


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Before anything is unpacked: names that differ, and sizes that the file can hold."""
    members = archive.infolist()
    if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
        raise Damaged("two of its arrays have one name")
    if any(member.compress_type not in _PACKINGS for member in members):
        raise Damaged("it is compressed in a way that NumPy does not use")
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > size or unpacked > _MOST_UNPACKED * size + _SLACK:
        raise Damaged(f"it declares {unpacked} bytes of arrays, but has {size}")


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, copied out of what was checked against its checksum by being read to its end."""
    content = archive.read(name)
    stream = io.BytesIO(content)
    shape, fortran, dtype = _array_header(stream, name)
    if dtype.kind not in _KINDS:
        raise Damaged("it holds what is no plain array")
    start = stream.tell()
    if start + math.prod(shape) * dtype.itemsize != len(content):
        raise Damaged(f"`{name}` is shorter or longer than it says")
    flat = np.frombuffer(content, dtype, offset=start) if dtype.itemsize else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def _array_header(stream: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise Damaged(f"`{name}` is of an unknown version")
    return read(stream)
