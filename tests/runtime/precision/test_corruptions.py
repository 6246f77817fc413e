from __future__ import annotations

import numpy as np
import pytest

from runtime.precision.corruptions import (
    SEVERITIES,
    STRENGTHS,
    Floats,
    corrupt,
    corruption_names,
    input_kind,
)

CASES = [(kind, name) for kind in STRENGTHS for name in corruption_names(kind)]


def smooth_images(n: int = 24, side: int = 32, channels: int = 3) -> Floats:
    """Images with edges, gradients and fine lines, different from each other."""
    rng = np.random.default_rng(5)
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    phase = rng.uniform(0, 6, size=(n, channels, 1, 1))
    waves = 0.5 + 0.3 * np.sin(row / 5.0 + phase) + 0.15 * np.sign(np.sin(column / 3.0 + phase))
    return np.clip(waves, 0.0, 1.0).astype(np.float32)


def tones(n: int = 12, samples: int = 2000) -> Floats:
    time = np.arange(samples) / 8000.0
    hz = np.linspace(200.0, 2000.0, n)[:, None, None]
    return (0.8 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


INPUTS = {"image": smooth_images(), "audio": tones()}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_severity_zero_is_the_identity_and_the_input_is_never_changed(kind: str, name: str) -> None:
    x = INPUTS[kind]
    before = x.copy()
    same = corrupt(x, name, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(same, x)
    same += 1.0  # not a view
    corrupt(x, name, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_distance_grows_with_severity_inside_the_range(kind: str, name: str) -> None:
    x = INPUTS[kind]
    low = 0.0 if kind == "image" else -1.0
    distances = []
    for severity in SEVERITIES:
        changed = corrupt(x, name, severity, np.random.default_rng(1))
        assert changed.shape == x.shape
        assert changed.dtype == np.float32
        assert changed.min() >= low
        assert changed.max() <= 1.0
        distances.append(float(np.sqrt(np.mean((changed - x) ** 2))))
    assert distances[0] == 0.0
    assert all(np.diff(distances) > 0.0), distances


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_seed_decides(kind: str, name: str) -> None:
    x = INPUTS[kind]
    first, again, other = (corrupt(x, name, 4, np.random.default_rng(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    random = {"noise", "occlusion", "dropout"}
    assert (not np.array_equal(first, other)) == (name in random)


def test_occlusion_covers_its_share_and_more_of_the_same() -> None:
    x = np.zeros((50, 1, 64, 64), np.float32)
    covered = [corrupt(x, "occlusion", s, np.random.default_rng(3)) == 0.5 for s in SEVERITIES]
    for severity in range(1, 6):
        share = STRENGTHS["image"]["occlusion"][severity - 1]
        assert covered[severity].mean() == pytest.approx(share, rel=0.06)
        # Rounding to whole pixels may leave out a border line of the smaller square.
        assert (covered[severity - 1] & ~covered[severity]).mean() < 0.01


def test_pixelate_keeps_box_means_and_constant_images() -> None:
    x = smooth_images(4, 32, 1)
    coarse = corrupt(x, "pixelate", 2, np.random.default_rng(0))  # half the resolution: 2x2 boxes
    boxes = x.reshape(4, 1, 16, 2, 16, 2).mean((3, 5))
    np.testing.assert_allclose(coarse, boxes.repeat(2, 2).repeat(2, 3), atol=1e-6)
    flat = np.full((2, 3, 28, 28), 0.3, np.float32)
    for severity in SEVERITIES:
        same = corrupt(flat, "pixelate", severity, np.random.default_rng(0))
        np.testing.assert_allclose(same, flat, atol=1e-6)


def test_noise_and_contrast_have_their_stated_strength() -> None:
    grey = np.full((20, 1, 64, 64), 0.5, np.float32)
    noisy = corrupt(grey, "noise", 1, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.04, rel=0.01)
    x = smooth_images(4)
    faint = corrupt(x, "contrast", 5, np.random.default_rng(0))
    np.testing.assert_allclose(faint.std((1, 2, 3)), 0.18 * x.std((1, 2, 3)), rtol=1e-4)
    wave = tones(4)
    dirty = corrupt(wave, "noise", 3, np.random.default_rng(0)) - wave
    ratio_db = 10 * np.log10(np.mean(wave**2) / np.mean(dirty**2))
    assert ratio_db == pytest.approx(12.0, abs=0.4)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 3, 17, 23), (0, 1, 28, 28)])
def test_odd_sizes_and_no_images_at_all(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 0.4, np.float32)
    for name in corruption_names("image"):
        assert corrupt(x, name, 5, np.random.default_rng(0)).shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "niose"}, "unknown corruption of image inputs 'niose'; did you mean 'noise'"),
        ({"name": "clipping"}, "unknown corruption of image inputs 'clipping'"),
        ({"severity": 6}, "severity is 6; expected 0 to 5"),
        ({"severity": -1}, "severity is -1"),
        ({"x": np.zeros((2, 1, 8, 8))}, "inputs are float64; expected float32"),
        ({"x": np.zeros((8, 8), np.float32)}, r"shape \(8, 8\); expected images"),
        ({"x": np.zeros((2, 2, 8, 8), np.float32), "name": "jpeg"}, "2 channels; JPEG takes 1"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], message: str) -> None:
    given = {"x": INPUTS["image"], "name": "noise", "severity": 1, "rng": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=message):
        corrupt(**(given | change))  # type: ignore[arg-type]


def test_kinds() -> None:
    assert input_kind(INPUTS["image"]) == "image"
    assert input_kind(INPUTS["audio"]) == "audio"
    with pytest.raises(ValueError, match="unknown kind of input 'imag'; did you mean 'image'"):
        corruption_names("imag")
