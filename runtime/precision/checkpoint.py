"""Trained networks as one file: safetensors, with what they are in the file's header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from runtime.precision.networks import build_network
from runtime.precision.slimmable import SlimmableNetwork

FORMAT: Final = 1
"""Version of the file's layout; a file of another version is refused."""

_HEADER = "rheostat"


class CheckpointError(ValueError):
    """A file that does not hold what it should."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header, atomically and durably.

    Args:
        path: Where to write; its folder exists.
        tensors: By name.
        header: What JSON can hold.

    Raises:
        ValueError: A number of the header is not finite.
    """
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save_file(whole, temporary, metadata={_HEADER: text})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Returns:
        Tensors by name, and the header.

    Raises:
        CheckpointError: The file is absent, damaged, of another kind or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = json.loads(text) if text is not None else None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has no header of ours; expected a file that was made here")
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {header.get('format')}; expected {FORMAT}")
    return tensors, header


def save_network(path: Path, network: SlimmableNetwork, header: Mapping[str, Any]) -> None:
    """Write a network with its weights and the normalisations of all widths.

    Args:
        path: Where to write, usually `*.safetensors`.
        network: A network of `networks.NETWORKS`.
        header: What else to know about it: data, seed, epochs, accuracy.
    """
    own = {"network": network.name, "stages": list(network.stage_names)}
    write_tensors(path, network.state_dict(), {**header, **own})


def load_network(path: Path) -> tuple[SlimmableNetwork, dict[str, Any]]:
    """Read a network back.

    Args:
        path: A file that `save_network` wrote.

    Returns:
        The network in evaluation mode, and the header.

    Raises:
        CheckpointError: See `read_tensors`; also tensors that do not fit the network, or numbers
            that are not finite.
    """
    tensors, header = read_tensors(path)
    try:
        network = build_network(str(header.get("network")), np.random.default_rng(0))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    expected = network.state_dict()
    wrong = {*expected} ^ {*tensors} or {
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    }
    if wrong:
        raise CheckpointError(
            f"{path} does not fit network {network.name!r}: {', '.join(sorted(wrong)[:3])} "
            f"({len(wrong)} in all) absent, unknown or of another shape"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")
    network.load_state_dict(tensors)
    return network.eval(), header
