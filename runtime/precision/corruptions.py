"""Corruptions of inputs, to see how much precision a network needs when the world gets worse.

The idea of named corruptions at five severities is Hendrycks & Dietterich's (Benchmarking neural
network robustness to common corruptions and perturbations, ICLR 2019, arXiv:1903.12261). The
strengths here are our own: theirs are tuned for 224x224 photographs. Lengths are shares of an
image's side, so that one table serves images from 8x8 to 64x64. Severity 0 changes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from runtime.precision.names import unknown

Floats = NDArray[np.float32]
Corruption = Callable[[Floats, float, np.random.Generator], Floats]

SEVERITIES: Final = range(6)
KINDS: Final = {4: "image", 3: "audio"}
"""Kind of input by its number of dimensions."""

STRENGTHS: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "image": {
        "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # standard deviation of Gaussian noise
        "blur": (0.012, 0.018, 0.026, 0.038, 0.055),  # of the Gaussian kernel, share of the side
        "contrast": (0.75, 0.55, 0.4, 0.28, 0.18),  # factor on the distance from the mean
        "occlusion": (0.05, 0.1, 0.18, 0.28, 0.4),  # share of the image under a grey square
        "pixelate": (0.7, 0.5, 0.4, 0.3, 0.22),  # resolution left, share of the side
        "jpeg": (40.0, 25.0, 15.0, 10.0, 6.0),  # quality setting of the encoder
    },
    "audio": {
        "noise": (25.0, 18.0, 12.0, 6.0, 0.0),  # signal over white noise, dB
        "clipping": (0.5, 0.3, 0.18, 0.1, 0.05),  # share of the peak that is not cut off
        "dropout": (0.05, 0.1, 0.18, 0.28, 0.4),  # share of the recording that is silent
        "attenuation": (0.5, 0.25, 0.1, 0.04, 0.016),  # factor on the amplitude
    },
}
"""Parameter of every corruption at severities 1 to 5."""


def input_kind(x: Floats) -> str:
    """Return what an input is: `"image"` or `"audio"`.

    Raises:
        ValueError: It has another number of dimensions.
    """
    if x.ndim not in KINDS:
        raise ValueError(
            f"inputs have shape {tuple(x.shape)}; expected images [n, c, h, w] or waves [n, c, t]"
        )
    return KINDS[x.ndim]


def corruption_names(kind: str) -> tuple[str, ...]:
    """Return the corruptions of a kind of input.

    Args:
        kind: `"image"` or `"audio"`.

    Raises:
        ValueError: There is no such kind.
    """
    if kind not in STRENGTHS:
        raise unknown("kind of input", kind, STRENGTHS)
    return tuple(STRENGTHS[kind])


def corrupt(x: Floats, name: str, severity: int, rng: np.random.Generator) -> Floats:
    """Return corrupted inputs.

    Args:
        x: float32 [n, c, h, w], images with 1 or 3 channels in [0, 1], or [n, c, t], waves in
            [-1, 1].
        name: One of `corruption_names`.
        severity: 0 (the inputs as they are) to 5.
        rng: Where the randomness comes from; corruptions without any leave it untouched.

    Returns:
        float32 of the same shape and range; `x` itself is never changed.

    Raises:
        ValueError: Unknown name or severity, or inputs of another shape or type.
    """
    kind = input_kind(x)
    if name not in STRENGTHS[kind]:
        raise unknown(f"corruption of {kind} inputs", name, STRENGTHS[kind])
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; expected 0 to {SEVERITIES[-1]}")
    if x.dtype != np.float32:
        raise ValueError(f"inputs are {x.dtype}; expected float32")
    if severity == 0:
        return x.copy()
    strength = STRENGTHS[kind][name][severity - 1]
    low = 0.0 if kind == "image" else -1.0
    changed = _FUNCTIONS[kind][name](x, strength, rng)
    clipped: Floats = np.clip(changed, np.float32(low), np.float32(1.0), dtype=np.float32)
    return clipped


def _noise(x: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    return x + np.float32(deviation) * rng.standard_normal(x.shape, np.float32)


def _blur(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    side = min(x.shape[2:])
    blurred: Floats = gaussian_filter(x, (0, 0, share * side, share * side), mode="nearest")
    return blurred


def _contrast(x: Floats, factor: float, rng: np.random.Generator) -> Floats:
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    faded: Floats = mean + np.float32(factor) * (x - mean)
    return faded


def _occlusion(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Put a grey square (a rectangle of the image's shape) at a random place of each image."""
    n, _, height, width = x.shape
    place = rng.random((n, 2, 1))
    size = np.sqrt(share)
    # The same draw at a higher severity covers the same pixels and more.
    top, left = (
        place[:, axis] * length * (1.0 - size) for axis, length in enumerate((height, width))
    )
    row, column = np.arange(height) + 0.5, np.arange(width) + 0.5
    rows = (row >= top) & (row < top + size * height)
    columns = (column >= left) & (column < left + size * width)
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    return np.where(covered, np.float32(0.5), x)


def _pixelate(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Average over boxes, then repeat: the same as scaling down and up again."""
    rows, columns = (_boxes(side, max(1, round(share * side))) for side in x.shape[2:])
    coarse: Floats = np.matmul(np.matmul(rows, x), columns.T)
    return coarse


def _boxes(side: int, pieces: int) -> Floats:
    """Return the matrix [side, side] that scales down to some pieces and up to the nearest."""
    edges = np.linspace(0.0, side, pieces + 1)
    start = np.arange(side)
    upper, lower = np.minimum(edges[1:, None], start + 1), np.maximum(edges[:-1, None], start)
    down = np.maximum(0.0, upper - lower) * (pieces / side)
    nearest = ((start + 0.5) * pieces / side).astype(int)
    matrix: Floats = down[nearest].astype(np.float32)
    return matrix


def _jpeg(x: Floats, quality: float, rng: np.random.Generator) -> Floats:
    """Encode as JPEG and decode again."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"images have {x.shape[1]} channels; JPEG takes 1 or 3")
    pixels = np.round(np.clip(x, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(0, 2, 3, 1)
    decoded = np.empty_like(pixels)
    for k, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
            buffer, "JPEG", quality=int(quality)
        )
        with Image.open(buffer) as coded:
            decoded[k] = np.asarray(coded).reshape(image.shape)
    return decoded.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)


def _audio_noise(x: Floats, ratio_db: float, rng: np.random.Generator) -> Floats:
    power = np.mean(np.square(x), axis=(1, 2), keepdims=True)
    deviation = np.sqrt(power) * np.float32(10.0 ** (-ratio_db / 20.0))
    noisy: Floats = x + deviation * rng.standard_normal(x.shape, np.float32)
    return noisy


def _clipping(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Overdrive: what exceeds a share of the peak is cut, and the rest is as loud as before."""
    limit = np.float32(share) * np.abs(x).max(axis=(1, 2), keepdims=True)
    return np.clip(x, -limit, limit)


def _dropout(x: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Silence one stretch at a random place of each recording."""
    n, _, samples = x.shape
    start = rng.random((n, 1)) * samples * (1.0 - share)
    time = np.arange(samples) + 0.5
    silent = (time >= start) & (time < start + share * samples)
    return np.where(silent[:, None, :], np.float32(0.0), x)


def _attenuation(x: Floats, factor: float, rng: np.random.Generator) -> Floats:
    """Turn the volume down, with the resolution of 16 bits."""
    steps = np.round(x * np.float32(factor * 32768.0)).astype(np.float32)
    return steps / np.float32(32768.0)


_FUNCTIONS: Final[dict[str, dict[str, Corruption]]] = {
    "image": {
        "noise": _noise,
        "blur": _blur,
        "contrast": _contrast,
        "occlusion": _occlusion,
        "pixelate": _pixelate,
        "jpeg": _jpeg,
    },
    "audio": {
        "noise": _audio_noise,
        "clipping": _clipping,
        "dropout": _dropout,
        "attenuation": _attenuation,
    },
}
