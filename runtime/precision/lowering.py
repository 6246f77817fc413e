"""From the fp32 graph of a stage to what runs at one level.

A lowered graph is again an fx.GraphModule: its layers are prepacked oneDNN operators, or those of
`gpu_layers` at levels of a GPU, and between them tensors are floats, or numbers of 8 bits on a
calibrated grid. Layers read such numbers and write whatever their readers want; operators that are
no layers run on floats, or pass them on where they only select values. All graphs of one (stage,
level) share their weights and differ in the format that they hand over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from runtime.precision import device, gpu_layers, kernels, machine
from runtime.precision.calibration import Range
from runtime.precision.capture import constants_of
from runtime.precision.formats import Format, Grid, LocalFormat, Placed, Rounded, ScaledFp8
from runtime.precision.kernels import ConvWeights, Int8Weights, LinearWeights, Packed, Weights
from runtime.precision.levels import Level
from runtime.precision.operators import (
    KEEPS_VALUES,
    VIEWS,
    entry_of,
    pool_arguments,
    result_of,
    root_of,
)
from runtime.precision.simplify import is_layer

TYPICAL_BATCH = 16
"""Batch size that weights are packed for; others run as fast with them."""

StageCall = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Borders:
    """What a stage is handed and hands over.

    Attributes:
        entry: Range of its input.
        result: Range of its result.
    """

    entry: Range
    result: Range


class LoweredStage:
    """One stage at one level.

    Attributes:
        level: The level.
        native: Format of the input.
        on_gpu: Whether it runs on a GPU.
        rounds: Whether values between layers are rounded to grids.
        stores: Whether they are kept as numbers of 8 bits.
        grid_kind: Which numbers these are.
        rest: Type in which it computes what are not layers.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        level: Level,
        ranges: Mapping[str, Range],
        borders: Borders,
        rest: torch.dtype = torch.float32,
        quantised: Mapping[str, Int8Weights] | None = None,
    ) -> None:
        """Prepack the weights.

        Args:
            graph: In the common form of `simplify`.
            level: One that this machine can run.
            ranges: Range of each tensor by name of its node; used below 16 bits.
            borders: Ranges shared with the neighbours.
            rest: Type in which an int8 stage computes what are not layers.
            quantised: Integer weights by name of their layer, where they are known.
        """
        self.level = level
        self.graph = graph
        self.on_gpu = level.device == "cuda"
        self.stores = level.kind in ("int8", "fp8")
        self.rounds = self.stores or level.emulated
        self.grid_kind = ScaledFp8 if level.kind == "fp8" else Grid
        floats = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(level.kind, torch.float32)
        self.rest = rest if self.stores else floats
        self._ranges, self._borders = ranges, borders
        self._constants = constants_of(graph)
        self.quantised = dict(quantised or {})
        if self.rounds and quantised is None:
            self.quantised = rounded_weights(graph, level)
        self.packed = {node.name: self._pack(node) for node in graph.graph.nodes if is_layer(node)}
        self.entry: LocalFormat = floats
        if self.rounds:
            grid = self.grid(entry_of(graph))
            self.entry = Rounded(grid) if level.emulated else grid
        self.native: Format = self.entry
        if self.on_gpu:
            assert not isinstance(self.entry, Rounded)  # nothing is emulated there
            self.native = Placed(self.entry)

    def grid(self, node: fx.Node) -> Grid:
        """Return the grid on which a tensor lies when it is rounded."""
        kind, root = self.grid_kind, root_of(node)
        if root.op == "placeholder":
            return kind.of_range(*self._borders.entry, self.level.bits)
        if root is root_of(result_of(self.graph)):
            return kind.of_range(*self._borders.result, self.level.bits)
        return kind.of_range(*self._ranges[root.name], self.level.bits)

    def _pack(self, node: fx.Node) -> Packed:
        source: Any = node.args[0]
        shape = (TYPICAL_BATCH, *source.meta["like"].shape[1:])
        layer = layer_at(node, self._constants)
        if self.on_gpu and self.stores:
            return gpu_layers.prepack_stored(self.quantised[node.name], self.grid(source), shape)
        if self.on_gpu:
            return gpu_layers.prepack_float(layer, self.rest, shape)
        if not self.rounds:
            return kernels.prepack_float(layer, self.rest, shape)
        weights = self.quantised[node.name]
        weights = Int8Weights(layer, weights.integers, weights.scales, weights.bits)
        if self.level.kind == "int8":
            return kernels.prepack_int8(weights, self.grid(source), shape)
        return kernels.prepack_float(_with_weight(layer, weights.dequantised()), self.rest, shape)

    def lower(self, out: Format) -> fx.GraphModule:
        """Return the graph that hands over a format.

        Args:
            out: fp32, bf16, or values on a grid of the border behind the stage. Where the stage
                runs somewhere else than the next one, what is carried there: values that cross are
                turned into another format on the GPU.
        """
        # Here, not above: emission reads this class.
        from runtime.precision.emission import Emitter

        if isinstance(out, Placed):
            out = out.form if self.on_gpu else out.carried
        module = Emitter(self, out).emit()
        return module.to(device.CUDA) if self.on_gpu else module

    def nbytes(self) -> int:
        """Return the memory of weights and constants, bytes; of an emulated level as declared."""
        layers = [node for node in self.graph.graph.nodes if is_layer(node)]
        in_layers = {str(node.args[i]) for node in layers for i in (1, 2)}
        others = sum(
            value.numel() * self.rest.itemsize
            for name, value in self._constants.items()
            if name not in in_layers
        )
        if self.level.emulated:
            bits = sum(w.integers.numel() * w.bits for w in self.quantised.values())
            scales = sum(4 * w.scales.numel() for w in self.quantised.values())
            biases = [self._constants.get(str(node.args[2])) for node in layers]
            return bits // 8 + scales + others + sum(4 * b.numel() for b in biases if b is not None)
        tensors = [tensor for packed in self.packed.values() for tensor in packed.tensors.values()]
        return others + sum(kernels.nbytes(tensor) for tensor in tensors)


def rounded_weights(graph: fx.GraphModule, level: Level) -> dict[str, Int8Weights]:
    """Return the weights of a graph's layers as a level of at most 8 bits keeps them, by name."""
    layers = layers_of(graph)
    if level.kind == "fp8":
        return {name: kernels.weights_in_fp8(layer) for name, layer in layers.items()}
    bits = machine.weight_bits(level)
    return {name: kernels.quantise_weights(layer, bits) for name, layer in layers.items()}


def layers_of(graph: fx.GraphModule) -> dict[str, Weights]:
    """Return the layers of a graph in the common form, by name of their nodes."""
    constants = constants_of(graph)
    return {node.name: layer_at(node, constants) for node in graph.graph.nodes if is_layer(node)}


def layer_at(node: fx.Node, constants: Mapping[str, Tensor]) -> Weights:
    """Return the layer that a node calls."""
    arguments: tuple[Any, ...] = node.args
    weight = constants[str(arguments[1].target)]
    bias = None if arguments[2] is None else constants[str(arguments[2].target)]
    if node.target is kernels.linear:
        return LinearWeights(weight, bias)
    stride, padding, dilation, groups = arguments[4:8]
    return ConvWeights(weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def _with_weight(layer: Weights, weight: Tensor) -> Weights:
    if isinstance(layer, LinearWeights):
        return LinearWeights(weight, layer.bias)
    rest = (layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return ConvWeights(weight, *rest)


def can_select(node: fx.Node, kind: type[Grid] = Grid) -> bool:
    """Return whether a node passes numbers of 8 bits on, selecting values.

    Args:
        node: In the common form.
        kind: Of these numbers; those of fp8 PyTorch can only look at in other ways.
    """
    if kind is ScaledFp8:
        return node.target in VIEWS
    if node.target is torch.ops.aten.max_pool2d.default:
        return pool_arguments(node) is not None
    return node.target in KEEPS_VALUES


def bind(module: fx.GraphModule) -> StageCall:
    """Return a lowered graph as a plain function of its input.

    Calling the module itself costs more than the whole dispatch should: this skips nn.Module's
    hooks and its look-up of buffers.
    """
    constants: Any = SimpleNamespace(**dict(module.named_buffers()))
    forward: Any = type(module).forward
    return MethodType(forward, constants)
