"""Profiles of precision on disk: one zip file with a readable header and plain arrays.

`header.json` (show it with `unzip -p FILE header.json`) holds names and scalars, `<field>.npy` each
array, never with pickles. The same profile gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from simulators.precision.profile import PrecisionProfile, array_types

FORMAT_VERSION = 4
_HEADER = "header.json"
_LISTS = ("stages", "levels", "emulated", "buckets", "conditions", "property_names")
_SCALARS: dict[str, type] = {
    "network": str,
    "power_active_w": float,
    "power_idle_w": float,
    "origin": str,
}
_LIST_TYPES: dict[str, type] = dict.fromkeys(_LISTS, str) | {"emulated": bool, "buckets": int}


def write_profile(profile: PrecisionProfile, path: Path) -> None:
    """Write a profile (temporary file, then rename)."""
    header: dict[str, Any] = {"format_version": FORMAT_VERSION}
    header |= {name: getattr(profile, name) for name in _SCALARS}
    header |= {name: list(getattr(profile, name)) for name in _LISTS}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        _add(archive, _HEADER, (json.dumps(header, indent=1) + "\n").encode())
        for name in array_types(profile):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, getattr(profile, name), allow_pickle=False)
            _add(archive, f"{name}.npy", buffer.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_profile(path: Path) -> PrecisionProfile:
    """Read a profile written by `write_profile`.

    Raises:
        ValueError: Not such a file, a damaged one, another format version, or impossible values;
            the message names file, field and reason.
    """
    try:
        members = _members(path)
        header = _header(members)
        fields: dict[str, Any] = {name: _scalar(header, name) for name in _SCALARS}
        fields |= {name: _list(header, name) for name in _LISTS}
        for name in PrecisionProfile.__dataclass_fields__:
            if name not in fields:
                fields[name] = _array(members, name)
        return PrecisionProfile(**fields)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a usable precision profile: {error}; measure the network again"
        ) from error


def _members(path: Path) -> dict[str, bytes]:
    """Return the content of every member. Damage makes zipfile raise half a dozen kinds."""
    members = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                try:
                    members[name] = archive.read(name)
                except Exception as error:
                    raise ValueError(f"{name} is damaged ({error})") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the file cannot be read ({error})") from error
    return members


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name)  # its date is fixed: equal profiles give equal files
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, content)


def _header(members: dict[str, bytes]) -> dict[str, Any]:
    if _HEADER not in members:
        raise ValueError(f"{_HEADER} is missing")
    try:
        header = json.loads(members[_HEADER])
    except ValueError as error:
        raise ValueError(f"{_HEADER} is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"{_HEADER} holds no mapping")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}; expected {FORMAT_VERSION}")
    return header


def _scalar(header: dict[str, Any], name: str) -> Any:
    kind, value = _SCALARS[name], header.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}; expected a {kind.__name__}")
    return value


def _list(header: dict[str, Any], name: str) -> tuple[Any, ...]:
    kind, value = _LIST_TYPES[name], header.get(name)
    if not isinstance(value, list) or any(type(entry) is not kind for entry in value):
        raise ValueError(f"{name} is {value!r}; expected a list of {kind.__name__}")
    return tuple(value)


def _array(members: dict[str, bytes], name: str) -> Any:
    if f"{name}.npy" not in members:
        raise ValueError(f"{name} is missing")
    try:
        return np.lib.format.read_array(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{name} is no plain array ({error})") from error
