from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.precision.corruptions import corrupt
from runtime.precision.properties import PROPERTY_NAMES, input_properties

Floats = NDArray[np.float32]
COLUMN = {name: k for k, name in enumerate(PROPERTY_NAMES)}


def images(side: int, channels: int = 1, n: int = 16) -> Floats:
    rng = np.random.default_rng(2)
    row, column = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    phase = rng.uniform(0, 6, size=(n, channels, 1, 1))
    x = 0.5 + 0.2 * np.sin(row / 4.0 + phase) + 0.2 * np.sign(np.sin(column / 3.0 + phase))
    return x.astype(np.float32)


def tones() -> Floats:
    time = np.arange(4000) / 8000.0
    return (0.6 * np.sin(2 * np.pi * 300.0 * time))[None, None].astype(np.float32)


def oracle(x: Floats) -> NDArray[np.float64]:
    """The definitions, in plain numpy and double precision; images of at most 32 rows."""
    g = x.astype(np.float64).mean(1)
    h, w = g.shape[1:]
    mask = np.outer([1, -2, 1], [1, -2, 1])
    response = sum(
        mask[i, j] * g[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3)
    )
    noise = np.sqrt(np.pi / 2) / 6 * np.abs(response).mean((1, 2))
    across = g[:, : h - 2, 1:] - g[:, : h - 2, :-1]
    down = g[:, 1 : h - 1, : w - 1] - g[:, : h - 2, : w - 1]
    gradient = np.sqrt((across**2 + down**2).mean((1, 2)))
    deviation = g.std((1, 2))
    extreme = (np.abs(g - 0.5) >= 0.5 - 0.5 / 255).mean((1, 2))
    columns = [g.mean((1, 2)), deviation, noise, gradient / (deviation + 1e-3), extreme]
    return np.stack(columns, 1)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (31, 3), (12, 4)])
def test_equals_the_definitions(side: int, channels: int) -> None:
    x = corrupt(images(side, channels), "noise", 2, np.random.default_rng(0))
    np.testing.assert_allclose(input_properties(x), oracle(x), rtol=2e-4, atol=1e-6)
    other_layout = np.asfortranarray(x)
    np.testing.assert_allclose(input_properties(other_layout), oracle(x), rtol=2e-4, atol=1e-6)
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(input_properties(channels_last), oracle(x), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (64, 3)])
def test_noise_is_estimated_in_its_own_unit(deviation: float, side: int, channels: int) -> None:
    rng = np.random.default_rng(1)
    ramp = np.linspace(0.3, 0.6, side, dtype=np.float32)
    x = ramp + deviation * rng.standard_normal((64, channels, side, side), np.float32)
    estimate = input_properties(x)[:, COLUMN["noise"]].mean()
    assert estimate == pytest.approx(deviation / np.sqrt(channels), rel=0.05)
    wave = np.linspace(-0.5, 0.5, 4000) + deviation * rng.standard_normal((8, 1, 4000))
    estimate = input_properties(wave.astype(np.float32))[:, COLUMN["noise"]].mean()
    assert estimate == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize(
    ("x", "corruption", "column", "sign"),
    [
        (images(28), "noise", "noise", +1),
        (images(64, 3), "noise", "noise", +1),
        (images(28), "blur", "sharpness", -1),
        (images(64, 3), "blur", "sharpness", -1),
        (images(28), "contrast", "contrast", -1),
        (tones(), "noise", "noise", +1),
        (tones(), "clipping", "saturation", +1),
        (tones(), "attenuation", "brightness", -1),
    ],
)
def test_react_to_their_corruption(x: Floats, corruption: str, column: str, sign: int) -> None:
    seen = [
        input_properties(corrupt(x, corruption, severity, np.random.default_rng(3)))
        for severity in range(6)
    ]
    means = np.array([table[:, COLUMN[column]].mean() for table in seen])
    assert (sign * np.diff(means) > 0).all(), means


@pytest.mark.parametrize("channels", [1, 2])
def test_waves_equal_the_definitions(channels: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0.0, 0.2, (3, channels, 1001)).astype(np.float32)
    x[0, :, 500:520] = 1.5
    w = x.astype(np.float64).mean(1)
    step, bend = np.diff(w)[:, :-1], np.diff(w, n=2)
    size, deviation = np.abs(w), w.std(1)
    noise = np.sqrt(np.pi / 2) / np.sqrt(6) * np.abs(bend).mean(1)
    sharpness = np.sqrt((step**2).mean(1)) / (deviation + 1e-3)
    extreme = (size >= 0.99 * size.max(1, keepdims=True)).mean(1)
    assert extreme[0] == 20 / 1001
    expected = np.stack([size.mean(1), deviation, noise, sharpness, extreme], 1)
    np.testing.assert_allclose(input_properties(x), expected, rtol=2e-4, atol=1e-6)
    assert input_properties(np.zeros((1, channels, 9), np.float32))[0, 4] == 0.0


def test_constant_inputs_have_no_contrast_and_stay_finite() -> None:
    for value, saturated in ((0.0, 1.0), (0.5, 0.0), (1.0, 1.0)):
        x = np.full((2, 3, 64, 64), value, np.float32)
        np.testing.assert_allclose(
            input_properties(x), [[value, 0.0, 0.0, 0.0, saturated]] * 2, atol=2e-4
        )
    silence = input_properties(np.zeros((2, 1, 100), np.float32))
    np.testing.assert_array_equal(silence, 0.0)


def test_each_sample_by_itself_and_nan_only_where_it_came() -> None:
    x = images(28)
    whole = input_properties(x)
    for k in (0, 7):
        np.testing.assert_allclose(input_properties(x[k : k + 1])[0], whole[k], rtol=1e-5)
    x[3, 0, 5, 5] = np.nan
    broken = input_properties(x)
    assert np.isnan(broken[3]).any()
    np.testing.assert_array_equal(np.delete(broken, 3, 0), np.delete(whole, 3, 0))
    assert input_properties(x[:0]).shape == (0, len(PROPERTY_NAMES))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 1, 28, 28)),
        np.zeros((2, 28, 28, 1, 1), np.float32),
        np.zeros((2, 1, 2, 28), np.float32),
        np.zeros((2, 0, 28, 28), np.float32),
        np.zeros((28, 28), np.float32),
    ],
)
def test_mistakes_are_named(x: Floats) -> None:
    with pytest.raises(ValueError, match=r"expected float32 images \[n, c, h, w\] or waves"):
        input_properties(x)
