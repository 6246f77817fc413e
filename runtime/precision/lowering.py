"""From the fp32 graph of a stage to what runs at one level.

A lowered graph is again an fx.GraphModule: its layers are prepacked oneDNN operators, and between
them tensors are fp32, bf16, or uint8 on a calibrated grid. An int8 layer reads uint8 and writes
whatever its readers want; operators that are not layers run on floats, or pass uint8 on where they
only select values. All graphs of one (stage, level) share their weights and differ in the format
that they hand over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from runtime.precision import kernels, machine
from runtime.precision.calibration import Range
from runtime.precision.capture import constants_of
from runtime.precision.formats import Format, Grid, Rounded
from runtime.precision.kernels import ConvWeights, Int8Weights, LinearWeights, Packed, Weights
from runtime.precision.levels import Level
from runtime.precision.operators import (
    KEEPS_VALUES,
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
        self.rest = {"bf16": torch.bfloat16, "int8": rest}.get(level.kind, torch.float32)
        self.rounds = level.kind in ("int8", "emulated")
        self._ranges, self._borders = ranges, borders
        self._constants = constants_of(graph)
        self.quantised = dict(quantised or {})
        if self.rounds and quantised is None:
            self.quantised = {
                name: kernels.quantise_weights(layer, machine.weight_bits(level))
                for name, layer in layers_of(graph).items()
            }
        self.packed = {node.name: self._pack(node) for node in graph.graph.nodes if is_layer(node)}
        self.native: Format = torch.float32
        if level.kind == "bf16":
            self.native = torch.bfloat16
        elif level.kind == "int8":
            self.native = self.grid(entry_of(graph))
        elif level.emulated:
            self.native = Rounded(self.grid(entry_of(graph)))

    def grid(self, node: fx.Node) -> Grid:
        """Return the grid on which a tensor lies when it is rounded."""
        root = root_of(node)
        if root.op == "placeholder":
            return Grid.of_range(*self._borders.entry, self.level.bits)
        if root is root_of(result_of(self.graph)):
            return Grid.of_range(*self._borders.result, self.level.bits)
        return Grid.of_range(*self._ranges[root.name], self.level.bits)

    def _pack(self, node: fx.Node) -> Packed:
        source: Any = node.args[0]
        shape = (TYPICAL_BATCH, *source.meta["like"].shape[1:])
        layer = layer_at(node, self._constants)
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
            out: fp32, bf16, or values on a grid of the border behind the stage.
        """
        # Here, not above: emission reads this class.
        from runtime.precision.emission import Emitter

        return Emitter(self, out).emit()

    def nbytes(self) -> int:
        """Return the memory of weights and constants, bytes; of an emulated level as declared."""
        layers = [node for node in self.graph.graph.nodes if is_layer(node)]
        in_layers = {str(node.args[i]) for node in layers for i in (1, 2)}
        others = sum(
            value.numel() * (2 if self.rest is torch.bfloat16 else 4)
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


def can_select_uint8(node: fx.Node) -> bool:
    """Return whether a node passes uint8 on, selecting values."""
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
