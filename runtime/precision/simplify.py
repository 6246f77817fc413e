"""One form for all captured graphs: layers as single nodes, the rest as plain ATen operators.

After `simplify` a graph computes the same in fp32, but every convolution and linear layer is one
call of `kernels.conv` or `kernels.linear` with its batch normalisation folded in, what is added to
it and its activation fused, 1-D convolutions written as 2-D ones, products with constant matrices
as linear layers, and everything that depends on constants alone computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from runtime.precision import kernels
from runtime.precision.capture import assemble, constants_of

aten: Any = torch.ops.aten

_NOTHING = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}
"""Operators that return their input when a model only infers."""

_CASTS = {aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.type_as.default}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_ADDS = {aten.add.Tensor, operator.add}

_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.gelu.default: "gelu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}


def is_layer(node: Any) -> bool:
    """Return whether a node is a convolution or a linear layer in the common form."""
    return isinstance(node, fx.Node) and node.target in (kernels.conv, kernels.linear)


def simplify(graph: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Return a captured graph in the common form.

    Args:
        graph: From `capture`.
        example: A float32 input; its values do not matter.

    Returns:
        A new graph, whose nodes carry `meta["like"]`: an example of their result on device meta,
        or None for what is not a tensor.
    """
    work = _Simplifier(graph)
    annotate(work.graph, work.constants, example)
    for step in (work.drop_nothing, work.fold_constants, work.name_layers, work.fold_norms):
        step()
    for step in (work.split_norms, work.fuse_adds, work.fuse_activations):
        annotate(work.graph, work.constants, example)
        step()
    result = assemble(work.graph, work.constants)
    annotate(result.graph, constants_of(result), example)
    return result


class _Recorder(fx.Interpreter):
    """Runs a graph and notes type and shape of every result."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        like = result.detach().to("meta") if isinstance(result, Tensor) else None
        n.meta = {**n.meta, "like": like}
        return result


def annotate(graph: fx.Graph, constants: dict[str, Tensor], example: Tensor) -> None:
    """Set `meta["like"]` of every node by running the graph on an example."""
    root = nn.Module()
    for name, value in constants.items():
        root.register_buffer(name, value)
    with torch.no_grad():
        _Recorder(root, graph=graph).run(example)


class _Simplifier:
    """The passes, in the order in which `simplify` runs them."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.constants = constants_of(module)
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(module.graph, {}))

    def _calls(self) -> list[Any]:
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def _replace(self, node: fx.Node, new: Any) -> None:
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _constant(self, node: Any) -> Tensor | None:
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.constants[str(node.target)]
        return None

    def _store(self, name: str, value: Tensor) -> fx.Node:
        while name in self.constants:
            name += "_"
        self.constants[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return self.graph.get_attr(name)

    def drop_nothing(self) -> None:
        """Remove operators that do nothing, and say reshape for every kind of view."""
        for node in self._calls():
            source: Any = node.args[0] if node.args else None
            if node.target in _NOTHING or (node.target in _CASTS and _same_type(node)):
                self._replace(node, source)
            elif node.target in _VIEWS:
                # Views of channels_last tensors exist for fewer shapes than reshapes do.
                node.target = aten.reshape.default
        self.graph.eliminate_dead_code()

    def fold_constants(self) -> None:
        """Compute what depends on constants alone."""
        for node in self._calls():
            inputs = node.all_input_nodes
            fixed = [self._constant(value) for value in inputs]
            if not inputs and not _makes_tensor(node):
                continue
            if any(value is None for value in fixed):
                continue
            known = dict(zip(inputs, fixed, strict=True))
            arguments = fx.node.map_arg(node.args, known.__getitem__)
            options: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
            target: Any = node.target
            value = target(*arguments, **options)
            if isinstance(value, Tensor):
                with self.graph.inserting_before(node):
                    self._replace(node, self._store(f"c_{node.name}", value))
        self.graph.eliminate_dead_code()

    def name_layers(self) -> None:
        """Write convolutions and products with constant matrices as layers."""
        for node in self._calls():
            make = _LAYERS.get(node.target)
            if make is not None:
                with self.graph.inserting_before(node):
                    layer = make(self, node)
                if layer is not None:
                    layer.meta = dict(node.meta)
                    self._replace(node, layer)
        self.graph.eliminate_dead_code()

    def layer_conv(self, node: Any) -> fx.Node | None:
        """Return a conv node for aten::conv1d or conv2d, None where it is something else."""
        x, weight, bias, stride, padding, dilation, groups = _filled(
            node, (None, None, None, 1, 0, 1, 1)
        )
        kernel, shift = self._constant(weight), self._constant(bias)
        if kernel is None or (bias is not None and shift is None) or kernel.dim() > 4:
            return None
        if isinstance(padding, str):
            padding = _named_padding(padding, kernel.shape[2:], dilation)
            if padding is None:
                return None
        one = kernel.dim() == 3
        pairs = [_pair(value, fill) for value, fill in ((stride, 1), (padding, 0), (dilation, 1))]
        if one:
            weight = self._store(f"{weight.target}_2d", kernel.unsqueeze(2))
            x = self.graph.call_function(aten.unsqueeze.default, (x, 2))
        arguments = (x, weight, bias, None, *pairs, groups, "none")
        layer = self.graph.call_function(kernels.conv, arguments)
        return self.graph.call_function(aten.squeeze.dim, (layer, 2)) if one else layer

    def layer_linear(self, node: Any) -> fx.Node | None:
        """Return a linear node for aten::linear."""
        x, weight, bias = _filled(node, (None, None, None))
        return self._linear(x, self._constant(weight), bias, str(weight))

    def layer_product(self, node: Any) -> fx.Node | None:
        """Return a linear node for a product with a constant matrix on the right."""
        x, right = node.args[0], node.args[1]
        matrix = self._constant(right)
        if matrix is None or matrix.dim() != 2 or _rank(x) < 2:
            return None
        return self._linear(x, matrix.t(), None, f"{right}_t")

    def layer_addmm(self, node: Any) -> fx.Node | None:
        """Return a linear node for bias + x @ matrix."""
        bias, x, right = node.args[:3]
        matrix = self._constant(right)
        if matrix is None or node.kwargs:
            return None
        return self._linear(x, matrix.t(), bias, f"{right}_t")

    def _linear(self, x: Any, weight: Tensor | None, bias: Any, name: str) -> fx.Node | None:
        shift = self._constant(bias)
        if weight is None or weight.dim() != 2 or weight.dtype != torch.float32:
            return None
        if self._constant(x) is not None or (
            bias is not None and (shift is None or shift.dim() != 1)
        ):
            return None
        stored = self._store(f"{name}_w", weight)
        return self.graph.call_function(kernels.linear, (x, stored, bias, None, "none"))

    def fold_norms(self) -> None:
        """Fold batch normalisation into the layer in front of it."""
        for node in self._calls():
            parts = self._norm(node)
            if parts is None:
                continue
            x, scale, shift = parts
            layer = _layer_behind(x)
            if layer is None:
                continue
            weight, bias = self._constant(layer.args[1]), self._constant(layer.args[2])
            assert weight is not None
            scaled = weight * scale.view(-1, *(1 for _ in range(weight.dim() - 1)))
            moved = shift if bias is None else bias * scale + shift
            with self.graph.inserting_before(layer):
                new = (self._store("c_folded", scaled), self._store("c_folded_bias", moved))
            layer.args = (layer.args[0], *new, *layer.args[3:])
            self._replace_norm(node, x)
        self.graph.eliminate_dead_code()

    def split_norms(self) -> None:
        """Write batch normalisation that follows no layer as a product and a sum."""
        for node in self._calls():
            parts = self._norm(node)
            if parts is None:
                continue
            x, scale, shift = parts
            shape = (1, -1, *(1 for _ in range(_rank(x) - 2)))
            with self.graph.inserting_before(node):
                factor = self._store("c_scale", scale.view(shape))
                offset = self._store("c_shift", shift.view(shape))
                product = self.graph.call_function(aten.mul.Tensor, (x, factor))
                total = self.graph.call_function(aten.add.Tensor, (product, offset))
            self._replace_norm(node, total)
        self.graph.eliminate_dead_code()

    def _norm(self, node: Any) -> tuple[Any, Tensor, Tensor] | None:
        """Return input, scale and shift per channel of a batch normalisation, else None."""
        if node.target is aten.batch_norm.default and node.args[5] is False:
            (x, *parameters), epsilon = node.args[:5], node.args[7]
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            (x, *parameters), epsilon = node.args[:5], node.args[6]
        else:
            return None
        weight, bias, mean, variance = (self._constant(value) for value in parameters)
        if mean is None or variance is None or not isinstance(epsilon, float):
            return None
        # In double: the fold shall not cost the exactness of fp32.
        scale = (variance.double() + epsilon).rsqrt()
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        return x, scale.float(), shift.float()

    def _replace_norm(self, node: fx.Node, new: fx.Node) -> None:
        if node.target is aten.batch_norm.default:
            self._replace(node, new)
            return
        for first in list(node.users):
            self._replace(first, new)

    def fuse_adds(self) -> None:
        """Let a layer add what is added to its result, where both have the same shape."""
        order = {node: at for at, node in enumerate(self.graph.nodes)}
        for node in self._calls():
            if node.target not in _ADDS or len(node.args) != 2 or node.kwargs:
                continue
            left, right = node.args
            both = [value for value in (left, right) if self._adds(value, node)]
            if not both or not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
                continue
            layer: Any = max(both, key=order.__getitem__)
            other = left if layer is right else right
            if self._constant(other) is not None or not _alike(layer, other) or layer is other:
                continue
            arguments = (*layer.args[:3], other, *layer.args[4:])
            target: Any = layer.target
            with self.graph.inserting_before(node):
                fused = self.graph.call_function(target, arguments)
            order[fused] = order[node]
            fused.meta = dict(node.meta)
            self._replace(node, fused)
            self.graph.erase_node(layer)

    def _adds(self, value: Any, node: fx.Node) -> bool:
        free = is_layer(value) and value.args[3] is None and value.args[-1] == "none"
        return bool(free and list(value.users) == [node])

    def fuse_activations(self) -> None:
        """Let a layer apply the activation that follows it."""
        for node in self._calls():
            name = _ACTIVATIONS.get(node.target)
            layer = _layer_behind(node.args[0]) if name is not None else None
            if name is None or layer is None:
                continue
            if name == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
                name = "gelu_tanh"
            # oneDNN's float linear layer either adds or activates.
            can = name == "relu" if layer.target is kernels.conv else layer.args[3] is None
            if can and layer.args[-1] == "none":
                layer.args = (*layer.args[:-1], name)
                source: Any = node.args[0]
                self._replace(node, source)


_LAYERS: dict[Any, Callable[[_Simplifier, Any], fx.Node | None]] = {
    aten.conv1d.default: _Simplifier.layer_conv,
    aten.conv1d.padding: _Simplifier.layer_conv,
    aten.conv2d.default: _Simplifier.layer_conv,
    aten.conv2d.padding: _Simplifier.layer_conv,
    aten.linear.default: _Simplifier.layer_linear,
    aten.matmul.default: _Simplifier.layer_product,
    aten.mm.default: _Simplifier.layer_product,
    aten.addmm.default: _Simplifier.layer_addmm,
}


def _layer_behind(value: Any) -> fx.Node | None:
    """Return the layer that only this value reads, looking through the squeeze of a 1-D one."""
    if not isinstance(value, fx.Node) or len(value.users) != 1:
        return None
    if is_layer(value):
        return value
    source = value.args[0] if value.target is aten.squeeze.dim else None
    if isinstance(source, fx.Node) and is_layer(source) and len(source.users) == 1:
        return source
    return None


def _filled(node: fx.Node, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*node.args, *defaults[len(node.args) :])


def _pair(value: Any, fill: int) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (
        (fill, values[0])
        if len(values) == 1 and not isinstance(value, int)
        else ((values[0], values[-1]) if len(values) == 2 else (value, value))
    )


def _named_padding(name: str, size: Any, dilation: Any) -> list[int] | None:
    """Return the padding that "same" or "valid" means, None if it differs left and right."""
    if name == "valid":
        return [0] * len(size)
    steps = [dilation] * len(size) if isinstance(dilation, int) else list(dilation)
    steps = steps * len(size) if len(steps) == 1 else steps
    total = [step * (k - 1) for step, k in zip(steps, size, strict=True)]
    return None if any(t % 2 for t in total) else [t // 2 for t in total]


def _like(value: Any) -> Tensor | None:
    like = value.meta.get("like") if isinstance(value, fx.Node) else None
    return like if isinstance(like, Tensor) else None


def _rank(value: Any) -> int:
    like = _like(value)
    return -1 if like is None else like.dim()


def _alike(left: Any, right: Any) -> bool:
    a, b = _like(left), _like(right)
    return a is not None and b is not None and (a.shape, a.dtype) == (b.shape, b.dtype)


def _same_type(node: fx.Node) -> bool:
    before, after = _like(node.args[0]), _like(node)
    return before is not None and after is not None and before.dtype == after.dtype


def _makes_tensor(node: fx.Node) -> bool:
    """Return whether a node without inputs makes a constant (a range, zeros), not noise."""
    return _like(node) is not None and "rand" not in str(node.target)
