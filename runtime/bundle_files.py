"""Files of a policy bundle: written whole or not at all, and checked before they are interpreted.

A bundle is a folder with two files, the same for all domains:

- `policy.json`: format version, environment, all that is not a large array, and checksums;
- `weights.safetensors`: the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

FORMAT_VERSION = 1
POLICY, WEIGHTS = "policy.json", "weights.safetensors"

Tensors = dict[str, NDArray[Any]]


class BundleError(ValueError):
    """A folder that is no usable bundle; the message says why."""


def write_bundle(folder: Path, description: dict[str, Any], tensors: Tensors) -> None:
    """Write a bundle (into a temporary folder that is then renamed).

    Args:
        folder: Where it goes; must not exist.
        description: Plain JSON values; `format_version` and `env` among them.
        tensors: The arrays by name.

    Raises:
        FileExistsError: The folder exists already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder or remove it")
    weights = save_tensors({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    content = description | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    content["sha256"] = _content_sha256(content)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / WEIGHTS).write_bytes(weights)
    (temporary / POLICY).write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, folder)


def read_bundle(folder: Path, env_id: str) -> tuple[dict[str, Any], Tensors]:
    """Read both files; check version and checksums before anything is interpreted.

    Args:
        folder: The bundle.
        env_id: The environment that it must have been made for.

    Returns:
        The description and the arrays by name.

    Raises:
        BundleError: Not a bundle, another version or environment, or a wrong checksum.
    """
    content = _read_description(folder)
    version = content["format_version"]
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has format version {version!r}; this code reads {FORMAT_VERSION}"
        )
    if content.get("env") != env_id:
        raise BundleError(f"{folder} is for {content.get('env')!r}; expected {env_id!r}")
    weights = (folder / WEIGHTS).read_bytes()
    for what, expected, actual in (
        (POLICY, content.get("sha256"), _content_sha256(content)),
        (WEIGHTS, content.get("weights_sha256"), hashlib.sha256(weights).hexdigest()),
    ):
        if expected != actual:
            raise BundleError(
                f"{folder / what} was changed after its export: its SHA-256 is {actual}, the "
                f"bundle says {expected}; copy or export it again"
            )
    try:
        return content, load_tensors(weights)
    except SafetensorError as error:
        raise BundleError(f"{folder} is not a usable bundle: {error}") from error


def env_of(folder: Path) -> str:
    """Return the environment that a bundle says it was made for; nothing else is checked.

    Raises:
        BundleError: Not a bundle.
    """
    return str(_read_description(folder).get("env"))


def _read_description(folder: Path) -> dict[str, Any]:
    for name in (POLICY, WEIGHTS):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is not a bundle: {name} is missing")
    try:
        content: dict[str, Any] = json.loads((folder / POLICY).read_text())
        content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / POLICY} is not a policy description ({error})") from error
    return content


def _content_sha256(content: dict[str, Any]) -> str:
    """Return the checksum of a description, its own checksum left out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
