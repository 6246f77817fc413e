"""A synthetic profile, for tests and for use without measurements. Every number is declared.

Four stages, four levels. The parameters give what real banks show: integer levels are fastest and
lose next to nothing on clean inputs, half width is faster still and loses visibly, and noisy
inputs make coarse levels lose much more than precise ones. It describes no real network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import all_assignments
from simulators.precision.profile import MARGIN_STEPS, PrecisionProfile, lognormal_residual

_LEVELS = ("fp32", "bf16", "int8", "int8_half")
_STAGES = ("stem", "body1", "body2", "head")
_PROPERTIES = ("brightness", "contrast", "noise", "sharpness", "saturation")


@dataclass(frozen=True)
class SyntheticParameters:
    """What the synthetic profile is made with.

    Attributes:
        samples: Samples of each condition.
        classes: Number of classes.
        buckets: Batch sizes.
        severities: Severity of the noise in each condition after the clean one.
        work_s: Time of each stage per request at the first level, seconds.
        call_s: Time of each stage per batch, at any level, seconds.
        speed: Speed of each level relative to the first one.
        border_s: Time per request to convert between two different levels, seconds.
        fixed_s: Time per batch, seconds.
        decision_s: Time in which an agent decides for a batch, seconds.
        switch_s: How much longer the first pass after one at other levels takes, seconds.
        sigma: Standard deviation of the logarithm of the residual.
        level_noise: Noise that each level adds to the score of a sample on clean inputs.
        sensitivity: How much of a level's noise each stage passes on.
        severity_gain: Growth of the levels' noise per unit of severity.
        severity_loss: Score that every sample loses per unit of severity.
        easiness: Mean score of a clean sample; its spread is 1.
        seed: Seed of the samples.
    """

    samples: int = 512
    classes: int = 10
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16)
    severities: tuple[float, ...] = (1.0, 3.0, 5.0)
    work_s: tuple[float, ...] = (1.2e-3, 2.4e-3, 2.4e-3, 0.8e-3)
    call_s: float = 0.2e-3
    speed: tuple[float, ...] = (1.0, 3.0, 5.5, 11.0)
    border_s: float = 0.03e-3
    fixed_s: float = 0.5e-3
    decision_s: float = 0.0
    switch_s: float = 0.0
    sigma: float = 0.05
    level_noise: tuple[float, ...] = (0.0, 0.03, 0.12, 0.55)
    sensitivity: tuple[float, ...] = (1.4, 0.8, 0.8, 1.2)
    severity_gain: float = 0.35
    severity_loss: float = 0.22
    easiness: float = 2.2
    seed: int = 0


def synthetic_profile(parameters: SyntheticParameters | None = None) -> PrecisionProfile:
    """Return the profile that the parameters describe."""
    p = parameters or SyntheticParameters()
    rng = np.random.default_rng(p.seed)
    severities = np.array([0.0, *p.severities])
    truth = rng.integers(0, p.classes, p.samples).astype(np.uint8)
    label, margin = _answers(p, severities, truth, rng)
    fixed_s, latency_s, transition_s = _costs(p)
    noise = np.array(p.level_noise)[None, None] * np.array(p.sensitivity)[None, :, None]
    grown = noise * (1.0 + p.severity_gain * severities)[:, None, None]
    width = np.array([1.0, 1.0, 1.0, 0.3])
    bits = np.array([4.0, 2.0, 1.0, 1.0])
    return PrecisionProfile(
        network="synthetic",
        stages=_STAGES,
        levels=_LEVELS,
        emulated=(False,) * len(_LEVELS),
        buckets=p.buckets,
        conditions=("clean", *(f"noise-{severity:g}" for severity in p.severities)),
        property_names=_PROPERTIES,
        fixed_s=fixed_s,
        decision_s=np.full(len(p.buckets), p.decision_s),
        switch_s=np.full(len(p.buckets), p.switch_s),
        latency_s=latency_s,
        transition_s=transition_s,
        residual=lognormal_residual(np.full(len(p.buckets), p.sigma)),
        bytes=np.outer([40_000, 300_000, 1_200_000, 200_000], bits * width).astype(np.int64),
        truth=truth,
        label=label,
        margin=margin,
        properties=_properties(p, severities, rng),
        clip_rate=np.minimum(0.02 * grown, 1.0).astype(np.float32),
        sqnr_db=(-20.0 * np.log10(np.maximum(grown, 1e-3))).astype(np.float32),
        power_active_w=30.0,
        power_idle_w=10.0,
        origin="synthetic",
    )


def _answers(
    p: SyntheticParameters,
    severities: NDArray[np.float64],
    truth: NDArray[np.uint8],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels and margins, uint8 [C, A, n].

    A sample's score is its easiness, less the loss of the condition, plus noise of each stage's
    level; the answer is right where the score is positive, and the margin grows with its size.
    """
    n, s = p.samples, len(_STAGES)
    levels = all_assignments(s, len(_LEVELS))
    easiness = p.easiness + rng.normal(size=n)
    own = rng.normal(size=(len(severities), n)) * 0.3
    direction = rng.normal(size=(s, len(_LEVELS), n))
    wrong = ((truth + rng.integers(1, p.classes, n)) % p.classes).astype(np.uint8)
    scale = np.outer(p.sensitivity, p.level_noise)[:, :, None] * direction
    noise = sum(scale[k, levels[:, k]] for k in range(s))
    labels, margins = [], []
    for c, severity in enumerate(severities):
        clean = easiness - p.severity_loss * severity + (own[c] if severity else 0.0)
        score = clean + (1.0 + p.severity_gain * severity) * noise
        labels.append(np.where(score > 0.0, truth, wrong))
        margins.append(np.rint(np.tanh(np.abs(score) / 2.0) * MARGIN_STEPS))
    return np.stack(labels).astype(np.uint8), np.stack(margins).astype(np.uint8)


def _costs(
    p: SyntheticParameters,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return fixed, stage and transition times."""
    size = np.array(p.buckets, dtype=np.float64)
    per_request = np.array(p.work_s)[:, None] / np.array(p.speed)
    latency_s = p.call_s + size[:, None, None] * per_request
    differs = 1.0 - np.eye(len(_LEVELS))
    border = np.broadcast_to(differs, (len(_STAGES) - 1, *differs.shape)) * p.border_s
    transition_s = size[:, None, None, None] * border
    return np.full(len(size), p.fixed_s), latency_s, transition_s


def _properties(
    p: SyntheticParameters, severities: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return input properties, float32 [C, n, F]; the noise estimate follows the severity."""
    shape = (len(severities), p.samples)
    noise = 0.02 + 0.04 * severities[:, None] + 0.01 * rng.normal(size=shape)
    columns = {
        "brightness": np.broadcast_to(rng.uniform(0.2, 0.8, p.samples), shape),
        "contrast": np.broadcast_to(rng.uniform(0.1, 0.4, p.samples), shape),
        "noise": np.maximum(noise, 0.0),
        "sharpness": 0.3 + 0.05 * severities[:, None] + 0.05 * rng.normal(size=shape),
        "saturation": np.broadcast_to(rng.uniform(0.0, 0.1, p.samples), shape),
    }
    return np.stack([columns[name] for name in _PROPERTIES], axis=-1).astype(np.float32)
