"""Light augmentation of training batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.precision.data import Floats
from runtime.precision.corruptions import SEVERITIES, corrupt, corruption_names, input_kind

_CORRUPTED_GROUPS = 6


@dataclass(frozen=True)
class Augmentation:
    """What is varied at random, each sample by itself.

    Attributes:
        shift: Largest shift of an image in either direction, pixels, or of a wave, samples; what
            comes in is zero.
        mirror: Whether images are mirrored left to right half of the time.
        rotate: Whether images are turned by a multiple of 90 degrees.
        gain: Largest factor, up or down, of a wave's amplitude; 1: none.
        corrupt: Share of samples that are corrupted (see `runtime.precision.corruptions`), at any
            severity: networks in service meet inputs that are not clean.
    """

    shift: int = 0
    mirror: bool = False
    rotate: bool = False
    gain: float = 1.0
    corrupt: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A negative shift, a gain below 1, or a share outside [0, 1].
        """
        if not 0.0 <= self.corrupt <= 1.0:
            raise ValueError(f"corrupt is {self.corrupt}; expected a share in [0, 1]")
        if self.shift < 0 or self.gain < 1.0:
            raise ValueError(
                f"shift and gain are {self.shift} and {self.gain}; expected at least 0 and 1"
            )

    def __call__(self, x: Floats, rng: np.random.Generator) -> Floats:
        """Return varied samples.

        Args:
            x: float32 [n, c, h, w] images (square if turned) or [n, c, t] waves.
            rng: Where the randomness comes from.
        """
        x = self._waves(x, rng) if x.ndim == 3 else self._images(x, rng)
        return _corrupted(x, self.corrupt, rng) if self.corrupt else x

    def _images(self, x: Floats, rng: np.random.Generator) -> Floats:
        n = len(x)
        if self.shift:
            x = _shifted(x, self.shift, rng)
        if self.mirror:
            x = np.where(rng.random(n)[:, None, None, None] < 0.5, x[..., ::-1], x)
        if self.rotate:
            turns = rng.integers(4, size=n)
            x = x.copy()
            for k in (1, 2, 3):
                x[turns == k] = np.rot90(x[turns == k], k, axes=(2, 3))
        return np.ascontiguousarray(x)

    def _waves(self, x: Floats, rng: np.random.Generator) -> Floats:
        n, _, t = x.shape
        if self.shift:
            start = rng.integers(2 * self.shift + 1, size=n)
            padded = np.pad(x, ((0, 0), (0, 0), (self.shift, self.shift)))
            x = padded[np.arange(n)[:, None], :, start[:, None] + np.arange(t)].transpose(0, 2, 1)
        log_gain = rng.uniform(-1.0, 1.0, size=(n, 1, 1)) * np.log(self.gain)
        return np.clip(x * np.exp(log_gain), -1.0, 1.0).astype(np.float32)


def _corrupted(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Corrupt a share of the samples, in a few groups of one corruption and severity each."""
    result = x.copy()
    chosen = np.flatnonzero(rng.random(len(x)) < share)
    names = corruption_names(input_kind(x))
    for group in np.array_split(chosen, _CORRUPTED_GROUPS):
        name, severity = names[rng.integers(len(names))], int(rng.integers(1, SEVERITIES[-1] + 1))
        if len(group):
            result[group] = corrupt(x[group], name, severity, rng)
    return result


def _shifted(x: Floats, shift: int, rng: np.random.Generator) -> Floats:
    n, _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    top, left = rng.integers(2 * shift + 1, size=(2, n, 1, 1))
    rows, columns = top + np.arange(h)[:, None], left + np.arange(w)
    # Advanced indices around a slice come first in the result: [n, h, w, c].
    return padded[np.arange(n)[:, None, None], :, rows, columns].transpose(0, 3, 1, 2)
