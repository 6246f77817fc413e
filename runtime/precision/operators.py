"""What is known about ATen operators that are not layers: what they keep and where they may run."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten

VIEWS: set[Any] = {
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.select.int,
    aten.slice.Tensor,
}
"""Operators that only look at their input in another way, and may share its memory."""

KEEPS_VALUES: set[Any] = {
    *VIEWS,
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
}
"""Operators whose results are a selection of their input's values, so one grid serves both."""

KEEPS_ORDER: set[Any] = {
    aten.relu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.clamp.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.leaky_relu.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
}
"""Operators that give channels_last results for channels_last inputs."""

IN_BF16: set[Any] = {
    *KEEPS_VALUES,
    *KEEPS_ORDER,
    aten.unbind.int,
    aten.split.Tensor,
    aten.chunk.default,
    aten.cat.default,
    aten.stack.default,
    aten.expand.default,
    aten.unfold.default,
    aten.constant_pad_nd.default,
    aten.pad.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.scaled_dot_product_attention.default,
    aten.matmul.default,
    aten.bmm.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.pow.Tensor_Scalar,
    aten.sqrt.default,
    aten.abs.default,
    aten.exp.default,
    aten.log.default,
    aten.log10.default,
    aten.log1p.default,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.mul.Scalar,
    aten.div.Scalar,
    aten.neg.default,
    aten.square.default,
    aten.clamp_min.default,
    aten.maximum.default,
}
"""Operators known to run on bf16 tensors and to accumulate in fp32; others run in fp32."""


def root_of(node: fx.Node) -> fx.Node:
    """Return the node whose values a node selects from, itself if it computes new ones."""
    while node.target in KEEPS_VALUES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def result_of(graph: fx.GraphModule) -> fx.Node:
    """Return the node whose result is the graph's."""
    output: Any = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
    result: fx.Node = output.args[0]
    return result


def entry_of(graph: fx.GraphModule) -> fx.Node:
    """Return the placeholder of a graph."""
    entry: fx.Node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    return entry


def pool_arguments(node: fx.Node) -> tuple[list[int], list[int], list[int]] | None:
    """Return kernel, stride and padding of aten::max_pool2d if `max_pool_uint8` can do it."""
    kernel = _pair(node.args[1])
    given: tuple[Any, ...] = node.args[2:]
    stride = _pair(given[0]) if given and given[0] else kernel
    padding = _pair(given[1]) if len(given) > 1 else [0, 0]
    dilation = _pair(given[2]) if len(given) > 2 else [1, 1]
    rounds_up = bool(given[3]) if len(given) > 3 else False
    return None if rounds_up or dilation != [1, 1] else (kernel, stride, padding)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return [values[0], values[-1]]
