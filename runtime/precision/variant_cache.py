"""What is costly to prepare for a level, kept on disk: integer weights and calibrated ranges.

One safetensors file per entry, named by a hash of everything that it depends on, written
atomically, and verified by a hash of its content when it is read. A file that is damaged is
reported in a warning and rebuilt, not an error: everything in it follows from the weights and the
calibration data at hand, and a service must not stay down for the sake of a derived file. It is
never used unverified. Prepacked weights are not kept: their layout is oneDNN's own, and packing
takes milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_VERSION = "1"


class VariantCache:
    """A folder of entries."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, key: Mapping[str, str]) -> Path:
        """Return where an entry is kept.

        Args:
            key: Everything that the content depends on, such as the hash of the weights, the
                level, the version of torch and the instruction set.
        """
        text = json.dumps({"version": _VERSION, **key}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def load(self, key: Mapping[str, str]) -> dict[str, Tensor] | None:
        """Return an entry's tensors, or None if there is none or it is damaged."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            _rebuild(path, f"it cannot be read ({error})")
            return None
        if metadata.get("sha256") != _digest(tensors):
            _rebuild(path, "its content does not have the hash that was written with it")
            return None
        if metadata.get("key") != json.dumps(dict(key), sort_keys=True):
            _rebuild(path, "it was written for another key")
            return None
        return tensors

    def store(self, key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; a reader sees the old one or the new one and nothing in between."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {
            "format": _VERSION,
            "key": json.dumps(dict(key), sort_keys=True),
            "sha256": _digest(plain),
        }
        # Distinct for each writer: two of them never write into the same temporary file.
        temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
        try:
            save_file(plain, temporary, metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _rebuild(path: Path, reason: str) -> None:
    warnings.warn(
        f"the cached variant {path} is ignored and built anew: {reason}", RuntimeWarning, 3
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
