from __future__ import annotations

import pytest
import torch

from runtime.cluster.events import N_FEATURES, N_PAYLOAD, N_SIGNAL, N_SOURCES, create_events


def test_events_are_a_function_of_the_seed() -> None:
    first, same, other = create_events(3, 512), create_events(3, 512), create_events(4, 512)
    for name in ("features", "signal", "payload", "source", "anomalous"):
        assert torch.equal(getattr(first, name), getattr(same, name))
    assert not torch.equal(first.features, other.features)


def test_shapes_types_and_ranges() -> None:
    events = create_events(0, 1024)
    assert events.features.shape == (1024, N_FEATURES)
    assert events.signal.shape == (1024, N_SIGNAL)
    assert events.payload.shape == (1024, N_PAYLOAD)
    assert (events.features.dtype, events.signal.dtype) == (torch.float32, torch.float32)
    assert (events.payload.dtype, events.source.dtype) == (torch.uint8, torch.int64)
    assert 0 <= int(events.source.min()) <= int(events.source.max()) < N_SOURCES


def test_anomalies_come_in_bursts() -> None:
    anomalous = create_events(0).anomalous
    starts = int((anomalous[1:] & ~anomalous[:-1]).sum())
    assert 0.02 < float(anomalous.float().mean()) < 0.15
    assert int(anomalous.sum()) / starts > 10  # mean length; single events would give 1


def test_records_wrap_around_the_ring() -> None:
    events = create_events(0, 256)
    rows = events.rows(events.source, 256 * 7 + 250, 10)
    assert torch.equal(rows, torch.cat([events.source[250:], events.source[:4]]))
    inside = events.rows(events.features, 256 + 3, 5)
    assert inside.data_ptr() == events.features[3].data_ptr()  # a view
    assert len(events.rows(events.source, 9, 0)) == 0


def test_a_tiny_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 256"):
        create_events(0, 100)
