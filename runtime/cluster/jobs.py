"""The application `security_events` as real torch computations.

Four side jobs and the chain normalise -> score -> correlate -> alert. Every task waits for a
store (a declared sleep) and then computes on its slice of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from runtime.application import Application, Job, Stage
from runtime.cluster.events import N_FEATURES, N_SIGNAL, N_SOURCES, EventRing, create_events
from runtime.cluster.stream_jobs import StageCode, StateUpdate, StreamJobs, TaskInput

SECURITY_EVENTS = Application(
    name="security_events",
    jobs=(
        Job("spectral_features", (Stage("transform", 96), Stage("summarise", 96, max_tasks=1))),
        Job("heavy_hitters", (Stage("main", 128),)),
        Job("payload_convolution", (Stage("main", 64),)),
        Job("similarity_join", (Stage("join", 128, max_tasks=1),)),
        Job("normalise", (Stage("main", 128),)),
        Job("score", (Stage("main", 96),)),
        Job("correlate", (Stage("main", 128, max_tasks=1),)),
        Job("alert", (Stage("main", 128, max_tasks=1),), stateful=True),
    ),
    edges=(("normalise", "score"), ("score", "correlate"), ("correlate", "alert")),
)

WAIT_S: Mapping[tuple[str, str], float] = {
    ("spectral_features", "transform"): 0.025,
    ("spectral_features", "summarise"): 0.020,
    ("heavy_hitters", "main"): 0.030,
    ("payload_convolution", "main"): 0.040,
    ("similarity_join", "join"): 0.040,
    ("normalise", "main"): 0.020,
    ("score", "main"): 0.025,
    ("correlate", "main"): 0.030,
    ("alert", "main"): 0.020,
}
"""Read from the store that every task of a stage waits for, seconds."""

BANDS = 16
TAPERS = 4
TOP = 32
REFERENCES = 2048
SKETCH = 64
JOIN_ROWS = 128
HIDDEN = 768
CODE = 12
JITTERS = 4
SUSPICIOUS = 512
DECAY = 0.02


class Scored(NamedTuple):
    """Result of `score`: normalised features float32 [n, N_FEATURES], error float32 [n] >= 0."""

    features: Tensor
    error: Tensor


class Correlated(NamedTuple):
    """Result of `correlate`: source int64 [k], error float32 [k], support float32 [k] in [0, 1].

    Support is the share of the other suspicious events that look alike.
    """

    source: Tensor
    error: Tensor
    support: Tensor


class Thresholds(NamedTuple):
    """State of `alert`: running mean and variance of the error per source, float32 [N_SOURCES]."""

    mean: Tensor
    variance: Tensor


def slice_parts(parts: Sequence[Tensor], offset: int, records: int) -> Tensor:
    """Return rows [offset, offset + records) of the concatenation of parts.

    Args:
        parts: Tensors of equal trailing shape.
        offset: First row.
        records: Number of rows; copied only where they span several parts.
    """
    pieces: list[Tensor] = []
    for part in parts:
        taken = part[max(offset, 0) : max(offset + records, 0)]
        if len(taken) or not pieces:
            pieces.append(taken)
        offset -= len(part)
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class SecurityModel:
    """Weights and reference data of the jobs, made once from a seed; read-only afterwards."""

    def __init__(self, events: EventRing, seed: int) -> None:
        """Fit the autoencoder in closed form and draw the rest.

        Args:
            events: The events; the first 4096 are the history that the model is fitted to.
            seed: Seed of all random weights.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.events = events
        history = events.features[:4096]
        self.centre = history.median(dim=0).values
        self.scale = (history - self.centre).abs().median(dim=0).values * 1.4826
        self.filters_1 = draw(16, 1, 8) / 8**0.5
        self.filters_2 = draw(32, 16, 8) / 128**0.5
        self.classes = draw(32, 8) / 32**0.5
        self.projection = draw(N_FEATURES, SKETCH) / N_FEATURES**0.5
        references = draw(REFERENCES, N_FEATURES) @ self.projection
        self.references = functional.normalize(references, dim=1).T.contiguous()
        self.tapers = _sine_tapers(TAPERS, N_SIGNAL)
        self.jitter = 0.05 * draw(JITTERS, 1, N_FEATURES)
        self._fit_autoencoder(self.normalise(history), draw)

    def _fit_autoencoder(self, history: Tensor, draw: Callable[..., Tensor]) -> None:
        """Fit wide random layers around a bottleneck: principal axes in, ridge regression out."""
        self.encoder: Tensor = draw(N_FEATURES, HIDDEN) / N_FEATURES**0.5
        hidden = torch.relu(history @ self.encoder)
        _, axes = torch.linalg.eigh(hidden.T @ hidden)
        self.bottleneck: Tensor = axes[:, -CODE:].contiguous()
        code = hidden @ self.bottleneck
        code_scale = code.std(dim=0).clamp_min(1e-6)
        self.decoder: Tensor = draw(CODE, HIDDEN) / (CODE**0.5 * code_scale[:, None])
        wide = torch.relu(code @ self.decoder)
        ridge = wide.T @ wide + 1e-1 * len(history) * torch.eye(HIDDEN)
        self.output: Tensor = torch.linalg.solve(ridge, wide.T @ history)

    def normalise(self, features: Tensor) -> Tensor:
        """Return robust z-scores, squeezed smoothly into (-6, 6); float32 [n, N_FEATURES]."""
        return 6.0 * torch.tanh((features - self.centre) / (6.0 * self.scale))

    def reconstruction_error(self, features: Tensor) -> Tensor:
        """Return the mean squared error over jittered copies of each row, float32 [n]."""
        error: Tensor = torch.zeros(len(features))
        for k in range(JITTERS):  # one copy at a time stays in the cache
            code = torch.relu((features + self.jitter[k]) @ self.encoder) @ self.bottleneck
            decoded = torch.relu(code @ self.decoder) @ self.output
            error += (decoded - features).square().mean(dim=1)
        return error / JITTERS


def _sine_tapers(tapers: int, length: int) -> Tensor:
    """Return float32 [tapers, length], orthonormal rows."""
    order = torch.arange(1, tapers + 1)[:, None]
    position = torch.arange(1, length + 1)
    scale = (2.0 / (length + 1)) ** 0.5
    tapers_by_position: Tensor = scale * torch.sin(torch.pi * order * position / (length + 1))
    return tapers_by_position


class SecurityTasks:
    """One method per stage: `TaskInput` in, result out."""

    def __init__(self, model: SecurityModel) -> None:
        """Take the model.

        Args:
            model: Weights and events.
        """
        self.model = model
        self.events = model.events

    def _rows(self, tensor: Tensor, task: TaskInput) -> Tensor:
        return self.events.rows(tensor, task.start, task.records)

    def transform(self, task: TaskInput) -> Tensor:
        """Return the log energy of `BANDS` frequency bands per event, float32 [n, BANDS].

        Multitaper estimate with sine tapers (Riedel and Sidorenko 1995, "Minimum bias multiple
        taper spectral estimation").
        """
        tapered = self._rows(self.events.signal, task)[:, None] * self.model.tapers
        power = torch.fft.rfft(tapered).abs().square().mean(dim=1)[:, : N_SIGNAL // 2]
        bands: Tensor = power.reshape(len(power), BANDS, N_SIGNAL // 2 // BANDS).sum(dim=2)
        return bands.log1p()

    def summarise(self, task: TaskInput) -> Tensor:
        """Return mean, deviation and upper decile of the bands of a batch, float32 [3, BANDS]."""
        bands = torch.cat(task.parents["transform"])
        if not len(bands):
            return torch.zeros(3, BANDS)
        decile = torch.quantile(bands, 0.9, dim=0)
        return torch.stack([bands.mean(dim=0), bands.std(dim=0, unbiased=False), decile])

    def heavy_hitters(self, task: TaskInput) -> tuple[Tensor, Tensor]:
        """Return the most frequent byte pairs per slice: pairs and counts, int64 [<= TOP]."""
        payload = self._rows(self.events.payload, task).to(torch.int32)
        pairs = (payload[:, :-1] * 256 + payload[:, 1:]).flatten()
        values, counts = torch.unique_consecutive(pairs.sort().values, return_counts=True)
        top = counts.topk(min(TOP, len(counts)))
        return values[top.indices], top.values

    def payload_convolution(self, task: TaskInput) -> Tensor:
        """Return class scores of the payload windows, float32 [n, 8]."""
        payload = self._rows(self.events.payload, task)[:, None].float() / 128.0 - 1.0
        low = functional.relu(functional.conv1d(payload, self.model.filters_1, stride=2))
        high = functional.relu(functional.conv1d(low, self.model.filters_2))
        scores: Tensor = high.amax(dim=2) @ self.model.classes
        return scores

    def similarity_join(self, task: TaskInput) -> tuple[Tensor, Tensor]:
        """Return the nearest reference per event: cosine float32 [n] and index int64 [n]."""
        features = self._rows(self.events.features, task)
        cosines, indices = [], []
        for first in range(0, max(len(features), 1), JOIN_ROWS):  # blocks stay in the cache
            rows = features[first : first + JOIN_ROWS]
            sketch = functional.normalize(rows @ self.model.projection, dim=1)
            cosine, index = (sketch @ self.model.references).max(dim=1)
            cosines.append(cosine)
            indices.append(index)
        return torch.cat(cosines), torch.cat(indices)

    def normalise(self, task: TaskInput) -> Tensor:
        """Return normalised features, float32 [n, N_FEATURES]."""
        return self.model.normalise(self._rows(self.events.features, task))

    def score(self, task: TaskInput) -> Scored:
        """Score the events that `normalise` handed over."""
        features = slice_parts(task.upstream["normalise"], task.offset, task.records)
        return Scored(features, self.model.reconstruction_error(features))

    def correlate(self, task: TaskInput) -> Correlated:
        """Join the most suspicious events of the batch with one another."""
        parts: tuple[Scored, ...] = task.upstream["score"]
        error = torch.cat([part.error for part in parts])
        top = error.topk(min(SUSPICIOUS, len(error)))
        features = torch.cat([part.features for part in parts])[top.indices]
        centred = functional.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
        alike = (centred @ centred.T > 0.5).float().sum(dim=1) - 1.0
        source = self.events.rows(self.events.source, task.first_record, len(error))[top.indices]
        return Correlated(source, top.values, alike.clamp_min(0.0) / max(len(source) - 1, 1))

    def alert(self, task: TaskInput) -> StateUpdate:
        """Alert on sources above their running threshold and update it; int64 [alerts]."""
        thresholds: Thresholds = task.state
        found: Correlated = task.upstream["correlate"][0]
        limit = thresholds.mean + 3.0 * thresholds.variance.sqrt()
        loud = found.source[found.error > limit[found.source]]
        alerts = torch.bincount(loud, minlength=N_SOURCES).nonzero().flatten()
        count = torch.bincount(found.source, minlength=N_SOURCES)
        weight = (1.0 - (1.0 - DECAY) ** count) / count.clamp_min(1)
        deviation = found.error - thresholds.mean[found.source]
        mean = thresholds.mean + weight * _sum_by_source(found.source, deviation)
        spread = deviation.square() - thresholds.variance[found.source]
        variance = thresholds.variance + weight * _sum_by_source(found.source, spread)
        return StateUpdate(alerts, Thresholds(mean, variance))


def _sum_by_source(source: Tensor, value: Tensor) -> Tensor:
    """Return the sums of values per source, float32 [N_SOURCES]."""
    return torch.zeros(N_SOURCES).index_add(0, source, value)


def _single_threaded() -> None:
    """Give a worker slot one core's worth of torch at most."""
    torch.set_num_threads(1)


def security_jobs(seed: int = 0, application: Application = SECURITY_EVENTS) -> StreamJobs:
    """Build the jobs of `security_events`.

    In every worker thread torch is limited to one thread; torch keeps that as the default of
    threads made later.

    Args:
        seed: Seed of events and weights.
        application: The structure; another one may change sizes of stages, classification and
            statefulness, but must keep the names of jobs and stages.

    Raises:
        ValueError: `application` has other jobs or stages.
    """
    events = create_events(seed)
    tasks = SecurityTasks(SecurityModel(events, seed))
    compute: dict[tuple[str, str], Callable[[TaskInput], object]] = {
        ("spectral_features", "transform"): tasks.transform,
        ("spectral_features", "summarise"): tasks.summarise,
        ("heavy_hitters", "main"): tasks.heavy_hitters,
        ("payload_convolution", "main"): tasks.payload_convolution,
        ("similarity_join", "join"): tasks.similarity_join,
        ("normalise", "main"): tasks.normalise,
        ("score", "main"): tasks.score,
        ("correlate", "main"): tasks.correlate,
        ("alert", "main"): tasks.alert,
    }
    code = {key: StageCode(function, WAIT_S[key]) for key, function in compute.items()}
    start = Thresholds(torch.full((N_SOURCES,), 1.0), torch.full((N_SOURCES,), 1.0))
    return StreamJobs(application, code, {"alert": start}, _single_threaded)
