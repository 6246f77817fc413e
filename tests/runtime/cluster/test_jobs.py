from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from runtime.application import Application, Job, Stage
from runtime.cluster.events import N_SIGNAL, N_SOURCES
from runtime.cluster.jobs import (
    BANDS,
    DECAY,
    SECURITY_EVENTS,
    WAIT_S,
    Correlated,
    SecurityTasks,
    Thresholds,
    security_jobs,
    slice_parts,
)
from runtime.cluster.stream_jobs import StateUpdate, StreamJobs, TaskInput


@pytest.fixture(scope="module")
def jobs() -> StreamJobs:
    return security_jobs(seed=1)


@pytest.fixture(scope="module")
def tasks(jobs: StreamJobs) -> SecurityTasks:
    return jobs.code(0, 0).compute.__self__  # type: ignore[attr-defined, no-any-return]


def task(records: int, first: int = 0, offset: int = 0, **given: Any) -> TaskInput:
    fields: dict[str, Any] = {"upstream": {}, "parents": {}, "state": None, **given}
    return TaskInput(0, first, records, 0, offset, records, 0, **fields)


def with_events(tasks: SecurityTasks, **tensors: torch.Tensor) -> SecurityTasks:
    other = SecurityTasks(tasks.model)
    other.events = dataclasses.replace(tasks.events, **tensors)
    return other


def test_four_side_jobs_and_a_stateful_chain() -> None:
    assert SECURITY_EVENTS.class_counts == (5, 3)
    assert [job.name for job in SECURITY_EVENTS.jobs if job.stateful] == ["alert"]
    keys = {(job.name, stage.name) for job in SECURITY_EVENTS.jobs for stage in job.stages}
    assert set(WAIT_S) == keys


@pytest.mark.parametrize(
    ("lengths", "offset", "records"),
    [([5, 5, 4], 3, 6), ([5, 5, 4], 5, 5), ([5, 5, 4], 0, 14), ([3, 0, 3], 2, 2), ([4], 4, 0)],
)
def test_slices_of_parts(lengths: list[int], offset: int, records: int) -> None:
    whole = torch.arange(sum(lengths))
    parts = whole.split(lengths)
    assert torch.equal(slice_parts(parts, offset, records), whole[offset : offset + records])


def test_a_pure_tone_lands_in_its_band(tasks: SecurityTasks) -> None:
    per_band = N_SIGNAL // 2 // BANDS
    cycles = 5 * per_band + per_band // 2
    signal = tasks.events.signal.clone()
    signal[0] = torch.sin(2 * torch.pi * cycles * torch.arange(N_SIGNAL) / N_SIGNAL)
    bands = with_events(tasks, signal=signal).transform(task(3))
    assert bands.shape == (3, BANDS)
    assert int(bands[0].argmax()) == 5


def test_the_summary_of_bands(tasks: SecurityTasks) -> None:
    low, high = torch.zeros(5, BANDS), torch.ones(5, BANDS)
    summary = tasks.summarise(task(10, parents={"transform": (low, high)}))
    torch.testing.assert_close(summary[:, 0], torch.tensor([0.5, 0.5, 1.0]))


def test_heavy_hitters_count_byte_pairs(tasks: SecurityTasks) -> None:
    payload = tasks.events.payload.clone()
    payload[7] = 9
    payload[7, :3] = torch.tensor([1, 2, 1], dtype=torch.uint8)
    pairs, counts = with_events(tasks, payload=payload).heavy_hitters(task(1, first=7))
    found = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
    assert found == {9 * 256 + 9: 252, 256 + 2: 1, 2 * 256 + 1: 1, 256 + 9: 1}


def test_the_join_finds_the_nearest_reference(tasks: SecurityTasks) -> None:
    cosine, index = tasks.similarity_join(task(300))
    sketch = tasks.events.features[:300] @ tasks.model.projection
    similarity = torch.nn.functional.cosine_similarity(
        sketch[:, None], tasks.model.references.T[None], dim=2
    )
    torch.testing.assert_close(cosine, similarity.max(dim=1).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        similarity.gather(1, index[:, None])[:, 0], cosine, atol=1e-5, rtol=0
    )


def test_scores_separate_anomalies(tasks: SecurityTasks) -> None:
    error = tasks.model.reconstruction_error(tasks.model.normalise(tasks.events.features[:4096]))
    anomalous = tasks.events.anomalous[:4096]
    rank = error.argsort().argsort().float()
    n, m = int(anomalous.sum()), int((~anomalous).sum())
    area = (float(rank[anomalous].mean()) - (n - 1) / 2) / m
    assert area > 0.95  # area under the ROC curve; a blind score has 0.5


def test_scoring_is_the_same_in_any_slicing(tasks: SecurityTasks) -> None:
    parts = tuple(tasks.normalise(task(50, offset=first)) for first in (0, 50))
    whole = tasks.score(task(100, upstream={"normalise": parts}))
    sliced = tasks.score(task(30, offset=40, upstream={"normalise": parts}))
    torch.testing.assert_close(sliced.error, whole.error[40:70])
    assert torch.equal(sliced.features, whole.features[40:70])


def test_correlation_keeps_the_sources_of_the_loudest_events(tasks: SecurityTasks) -> None:
    features = tasks.model.normalise(tasks.events.features[:600])
    scored = tasks.score(task(600, upstream={"normalise": (features,)}))
    found = tasks.correlate(task(600, upstream={"score": (scored,)}))
    order = scored.error.argsort(descending=True)[: len(found.source)]
    assert torch.equal(found.source, tasks.events.source[:600][order])
    assert 0.0 <= float(found.support.min()) <= float(found.support.max()) <= 1.0


def test_thresholds_run_per_source_and_leave_the_old_state_alone(tasks: SecurityTasks) -> None:
    state = Thresholds(torch.full((N_SOURCES,), 1.0), torch.full((N_SOURCES,), 0.04))
    found = Correlated(
        torch.tensor([3, 3, 8]), torch.tensor([2.0, 2.0, 1.5]), torch.tensor([0.0, 0.0, 0.0])
    )
    update = tasks.alert(task(9, state=state, upstream={"correlate": (found,)}))
    assert isinstance(update, StateUpdate)
    assert update.output.tolist() == [3]  # limit 1 + 3 * 0.2 = 1.6
    assert float(update.state.mean[3]) == pytest.approx(1.0 + (1.0 - (1.0 - DECAY) ** 2))
    assert float(update.state.mean[8]) == pytest.approx(1.0 + DECAY * 0.5)
    assert float(update.state.mean[0]) == 1.0
    assert float(update.state.variance[8]) == pytest.approx(0.04 + DECAY * (0.25 - 0.04))
    assert state.mean.eq(1.0).all()


def test_another_application_must_have_the_same_stages() -> None:
    with pytest.raises(ValueError, match="has no code; did you mean 'score/main'"):
        security_jobs(application=Application("other", (Job("scores", (Stage("main"),)),)))
