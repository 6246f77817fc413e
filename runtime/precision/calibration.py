"""Ranges of every tensor of every stage on calibration data: where the 8-bit grids lie.

Each border between two stages has one range, which both sides use, so a uint8 border needs no
conversion whatever levels meet there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from runtime.precision.formats import Grid
from runtime.precision.operators import entry_of, result_of, root_of
from runtime.precision.staging import StagedNetwork

_CHUNK = 64
"""Inputs that go through the network at once."""

_SAMPLED = 1 << 18
"""Most values of one tensor and chunk that a percentile looks at."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        ranges: Per (stage index, width) the range of each tensor by name of its node.
        borders: Range of the input of each stage, and of the last one's result: one more than
            there are stages.
        key: Hash of the data and of how ranges were taken.
    """

    ranges: Mapping[tuple[int, float], Mapping[str, Range]]
    borders: tuple[Range, ...]
    key: str

    def border_grid(self, index: int) -> Grid:
        """Return the 8-bit grid on which stage `index` takes its input."""
        return Grid.of_range(*self.borders[index])

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all ranges as float64 [2] by "stage/width/tensor", borders by "border/index"."""
        values = {f"border/{i}": border for i, border in enumerate(self.borders)}
        for (k, width), ranges in self.ranges.items():
            values |= {f"{k}/{width!r}/{name}": found for name, found in ranges.items()}
        return {name: torch.tensor(pair, dtype=torch.float64) for name, pair in values.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], key: str) -> Calibration:
        """Return a calibration from its `to_tensors` form."""
        ranges: dict[tuple[int, float], dict[str, Range]] = {}
        borders: dict[int, Range] = {}
        for name, pair in tensors.items():
            low, high = pair.tolist()
            head, _, tail = name.partition("/")
            if head == "border":
                borders[int(tail)] = (low, high)
            else:
                width, _, tensor = tail.partition("/")
                ranges.setdefault((int(head), float(width)), {})[tensor] = (low, high)
        return cls(ranges, tuple(borders[i] for i in range(len(borders))), key)


def calibrate(
    network: StagedNetwork,
    data: Tensor,
    percentile: float = 100.0,
    graphs: Mapping[tuple[int, float], fx.GraphModule] | None = None,
) -> Calibration:
    """Run data through the network and note the range of every tensor.

    Args:
        network: In fp32.
        data: float32 [n, *input_shape], n >= 1; what the network will see. Order does not matter
            at percentile 100.
        percentile: 100 takes minimum and maximum. Below, each chunk of 64 inputs gives its
            percentiles `100 - p` and `p` of up to 262,144 evenly spaced values per tensor, and the
            widest of the chunks' ranges is taken.
        graphs: Graphs by (stage index, width); widths other than 1 share their stage's borders,
            whose ranges then cover all of them.

    Raises:
        ValueError: Wrong shape, type or percentile, or a tensor that is not finite; the message
            names stage and tensor.
    """
    _refuse_data(network, data, percentile)
    if graphs is None:
        graphs = {(k, 1.0): stage.graph for k, stage in enumerate(network.stages)}
    widths = sorted({width for _, width in graphs}, reverse=True)
    watch = _Watch(percentile)
    with torch.no_grad():
        for chunk in torch.split(data, _CHUNK):
            # The chain at every width: a stage may follow any of them.
            inputs = [chunk for _ in widths]
            for k, stage in enumerate(network.stages):
                keys = sorted(key for key in graphs if key[0] == k)
                for at, width in enumerate(widths):
                    results = {
                        key: watch.run(graphs[key], inputs[at], key, stage.name) for key in keys
                    }
                    inputs[at] = results[(k, width) if (k, width) in graphs else (k, 1.0)]
    key = data_key(data, percentile)
    return Calibration(watch.ranges, _borders(watch.ranges, graphs), key)


def data_key(data: Tensor, percentile: float) -> str:
    """Return a hash of calibration data and of how its ranges are taken."""
    digest = hashlib.sha256(data.detach().contiguous().numpy().tobytes())
    digest.update(f"{tuple(data.shape)} {data.dtype} {percentile!r}".encode())
    return digest.hexdigest()


def _borders(
    ranges: Mapping[tuple[int, float], Mapping[str, Range]],
    graphs: Mapping[tuple[int, float], fx.GraphModule],
) -> tuple[Range, ...]:
    count = 1 + max(k for k, _ in graphs)
    first = graphs[0, 1.0]
    found = [ranges[0, 1.0][entry_of(first).name]]
    for k in range(count):
        around = []
        for key, graph in graphs.items():
            if key[0] == k:
                root = root_of(result_of(graph))
                # A stage that only selects hands its own border's grid on.
                is_entry = root.op == "placeholder"
                around.append(found[k] if is_entry else ranges[key][root.name])
        found.append((min(low for low, _ in around), max(high for _, high in around)))
    return tuple(found)


class _Watch:
    """Widest ranges seen so far."""

    def __init__(self, percentile: float) -> None:
        self.ranges: dict[tuple[int, float], dict[str, Range]] = {}
        self._percentile = percentile

    def run(self, graph: fx.GraphModule, x: Tensor, key: tuple[int, float], stage: str) -> Tensor:
        """Run a stage's graph and take note of all its tensors."""
        ranges = self.ranges.setdefault(key, {})
        result: Tensor = _Listener(graph, self, ranges, stage).run(x)
        return result

    def note(self, ranges: dict[str, Range], name: str, value: Tensor, stage: str) -> None:
        """Widen the range of one tensor."""
        low, high = (float(v) for v in torch.aminmax(value))
        # A NaN shows in the extremes, as an infinity does.
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int((~torch.isfinite(value)).sum())
            raise ValueError(
                f"stage {stage!r}, tensor {name!r}: {bad} of {value.numel()} values are not finite "
                "on the calibration data; mend the data or the weights"
            )
        if self._percentile < 100.0:
            low, high = self._percentiles(value)
        before = ranges.get(name, (low, high))
        ranges[name] = (min(before[0], low), max(before[1], high))

    def _percentiles(self, value: Tensor) -> Range:
        flat = value.detach().flatten().numpy()
        flat = flat[:: max(1, len(flat) // _SAMPLED)]
        low, high = np.percentile(flat, [100.0 - self._percentile, self._percentile])
        return float(low), float(high)


class _Listener(fx.Interpreter):
    def __init__(
        self, graph: fx.GraphModule, watch: _Watch, ranges: dict[str, Range], stage: str
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # it would be appended to our message
        self._watch, self._ranges, self._stage = watch, ranges, stage

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        is_float = isinstance(value, Tensor) and value.dtype == torch.float32
        if is_float and value.numel() and n.op not in ("get_attr", "output"):
            self._watch.note(self._ranges, n.name, value, self._stage)
        return value


def _refuse_data(network: StagedNetwork, data: Tensor, percentile: float) -> None:
    name = network.names[0]
    if not 50.0 < percentile <= 100.0:
        raise ValueError(f"percentile {percentile} given; expected more than 50 and at most 100")
    if data.dtype != torch.float32:
        raise ValueError(f"calibration data is {data.dtype}; stage {name!r} takes torch.float32")
    shape: Sequence[int] = tuple(data.shape)
    if len(shape) != 1 + len(network.input_shape) or tuple(shape[1:]) != network.input_shape:
        expected = ", ".join(map(str, ("n", *network.input_shape)))
        raise ValueError(
            f"calibration data has shape {list(shape)}; the input of stage {name!r} is [{expected}]"
        )
    if not shape[0]:
        raise ValueError("calibration data is empty; give some hundred typical inputs")
