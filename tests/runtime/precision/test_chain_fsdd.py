from __future__ import annotations

import numpy as np
import torch
from scipy.signal import get_window

from runtime.precision.chain_fsdd import (
    BINS,
    FLOOR,
    FRAME,
    FRAMES,
    HOP,
    MELS,
    RATE_HZ,
    SAMPLES,
    Log,
    Mel,
    Stft,
    mel_matrix,
)


def waves() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform(-1, 1, size=(3, 1, SAMPLES)).astype(np.float32))


def test_transform_equals_the_fast_fourier_transform_of_windowed_frames() -> None:
    x = waves()
    parts = Stft()(x).numpy()
    assert parts.shape == (3, 2 * BINS, 1, FRAMES)
    window = get_window("hann", FRAME)
    for frame in (0, 1, FRAMES - 1):
        piece = x.numpy()[:, 0, frame * HOP : frame * HOP + FRAME]
        expected = np.fft.rfft(piece * window) * 2.0 / window.sum()
        np.testing.assert_allclose(parts[:, :BINS, 0, frame], expected.real, atol=2e-5)
        np.testing.assert_allclose(parts[:, BINS:, 0, frame], expected.imag, atol=2e-5)


def test_mel_power_is_the_filtered_power_spectrum() -> None:
    parts = Stft()(waves())
    power = (parts[:, :BINS] ** 2 + parts[:, BINS:] ** 2).numpy()
    expected = np.einsum("mb,nbkt->nmkt", mel_matrix(), power)
    np.testing.assert_allclose(Mel()(parts).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_filters_are_triangles_that_cover_the_band() -> None:
    matrix = mel_matrix()
    assert matrix.shape == (MELS, BINS)
    assert (matrix >= 0.0).all()
    assert (matrix <= 1.0).all()
    assert (matrix.sum(1) > 0.0).all(), "a filter that hears nothing"
    peaks = matrix.argmax(1)
    assert (np.diff(peaks) >= 0).all()
    hz = np.arange(BINS) * RATE_HZ / FRAME
    inside = (hz > 150.0) & (hz < 3800.0)
    assert (matrix.sum(0)[inside] > 0.3).all(), "a hole between filters"


def test_a_full_scale_tone_is_one_and_silence_is_zero() -> None:
    tone_bin = 32
    time = np.arange(SAMPLES) / RATE_HZ
    tone = np.cos(2 * np.pi * tone_bin * RATE_HZ / FRAME * time)
    x = torch.from_numpy(np.stack([tone, np.zeros(SAMPLES)])[:, None].astype(np.float32))
    mel = Mel()(Stft()(x))
    image = Log()(mel)
    assert image.shape == (2, 1, MELS, FRAMES)
    heard = mel_matrix()[:, tone_bin].argmax()
    assert int(image[0, 0, :, 5].argmax()) == heard
    assert abs(float(image[0, 0, heard, 5]) - 1.0) < 0.1
    assert float(image[1].abs().max()) < 1e-6
    below = Log()(torch.full((1, MELS, 1, FRAMES), FLOOR / 10))
    assert float(below.abs().max()) < 1e-6
