"""Synthetic security events: a seeded ring of event tensors with bursts of anomalies.

Ordinary events live near a low-dimensional plane of feature space; anomalies leave it, come in
bursts from few sources and carry a byte pattern in their payload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

N_FEATURES = 32
N_SIGNAL = 256
N_PAYLOAD = 256
N_SOURCES = 512
_LATENT = 6
_BURST_LENGTH = 40
_BURST_SHARE = 0.06
_PATTERN = 0x5A


@dataclass(frozen=True, eq=False)
class EventRing:
    """Events by record number; record r is row r modulo the size of the ring.

    Attributes:
        features: float32 [size, N_FEATURES].
        signal: float32 [size, N_SIGNAL], a sensor window per event.
        payload: uint8 [size, N_PAYLOAD].
        source: int64 [size], in [0, N_SOURCES).
        anomalous: bool [size], the truth; no job reads it.
    """

    features: Tensor
    signal: Tensor
    payload: Tensor
    source: Tensor
    anomalous: Tensor

    def rows(self, tensor: Tensor, first_record: int, records: int) -> Tensor:
        """Return the rows of consecutive records; a view unless they wrap around.

        Args:
            tensor: One of the ring's tensors, [size, ...].
            first_record: Number of the first record since the start of the stream.
            records: How many, 0 or more.
        """
        size = len(tensor)
        start = first_record % size
        if start + records <= size:
            return tensor[start : start + records]
        return tensor[(torch.arange(records) + start) % size]


def create_events(seed: int = 0, size: int = 8192) -> EventRing:
    """Create a ring of events.

    Args:
        seed: The ring is a pure function of it and of the size.
        size: Number of different events, at least 256.

    Raises:
        ValueError: `size` below 256.
    """
    if size < 256:
        raise ValueError(f"the ring has {size} events; expected at least 256")
    rng = np.random.default_rng([seed, 0x5EC])
    anomalous = _burst_mask(rng, size)
    plane = rng.normal(size=(_LATENT, N_FEATURES))
    features = rng.normal(size=(size, _LATENT)) @ plane + 0.3 * rng.normal(size=(size, N_FEATURES))
    features[anomalous] += 2.5 * rng.normal(size=(int(anomalous.sum()), N_FEATURES))
    source = (N_SOURCES * rng.random(size) ** 3).astype(np.int64)  # few talkative sources
    source[anomalous] = rng.integers(0, 4, size=int(anomalous.sum()))
    phase = rng.random((size, 1)) * 2 * np.pi
    cycles = np.where(anomalous, 40.0, 6.0)[:, None] + rng.random((size, 1)) * 4
    angle = 2 * np.pi * cycles * np.arange(N_SIGNAL) / N_SIGNAL + phase
    signal = np.sin(angle) + 0.5 * rng.normal(size=(size, N_SIGNAL))
    payload = rng.integers(0, 256, size=(size, N_PAYLOAD), dtype=np.uint8)
    payload[anomalous, 64:128] = _PATTERN
    return EventRing(
        features=torch.from_numpy(features.astype(np.float32)),
        signal=torch.from_numpy(signal.astype(np.float32)),
        payload=torch.from_numpy(payload),
        source=torch.from_numpy(source),
        anomalous=torch.from_numpy(anomalous),
    )


def _burst_mask(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """Return bool [size]: bursts of geometric length, about `_BURST_SHARE` of all events."""
    mask = np.zeros(size, dtype=np.bool_)
    calm = _BURST_LENGTH * (1.0 - _BURST_SHARE) / _BURST_SHARE
    position = int(rng.geometric(1.0 / calm))
    while position < size:
        length = int(rng.geometric(1.0 / _BURST_LENGTH))
        mask[position : position + length] = True
        position += length + int(rng.geometric(1.0 / calm))
    return mask
