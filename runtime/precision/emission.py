"""Writing a lowered graph: which format each tensor has, and the operators that make it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from runtime.precision import device, kernels, quantise
from runtime.precision.capture import assemble, constants_of
from runtime.precision.formats import Grid, LocalFormat, Rounded
from runtime.precision.kernels import Added
from runtime.precision.lowering import LoweredStage, can_select
from runtime.precision.operators import IN_BF16, KEEPS_ORDER, VIEWS, pool_arguments
from runtime.precision.simplify import is_layer

aten: Any = torch.ops.aten

_Format = LocalFormat | None
"""None: not a tensor of floats (a size, indices, complex numbers), left as it is."""

_INTEGERS, _FLOATS = "integers", "floats"

_BATCH_SIZE: Any = aten.sym_size.int

_FRESH: set[Any] = {
    quantise.quantise,
    quantise.dequantise,
    quantise.fake_quantise,
    aten.to.dtype,
}
"""Results that share no memory with their input (a cast is only written where types differ)."""


class Emitter:
    """Writes the graph of one stage, level and format handed over."""

    def __init__(self, stage: LoweredStage, out: LocalFormat) -> None:
        self._stage, self._out = stage, out
        self._graph = fx.Graph()
        self._constants: dict[str, Tensor] = {}
        self._source = constants_of(stage.graph)
        self._values: dict[fx.Node, dict[_Format, fx.Node]] = {}
        self._wants = self._find_wants()
        self._scattered: set[fx.Node] = set()
        self._summed: list[fx.Node] = []

    def emit(self) -> fx.GraphModule:
        """Return the graph."""
        for node in self._stage.graph.graph.nodes:
            if node.op == "placeholder":
                self._set(node, self._stage.entry, self._graph.placeholder("x"))
            elif node.op == "output":
                result: Any = node.args[0]
                self._graph.output(self._ordered(self._value(result, self._out), result))
            elif is_layer(node):
                self._layer(node)
            elif node.op == "call_function":
                self._other(node)
        self._protect_added()
        return assemble(self._graph, self._constants)

    # Formats

    def _find_wants(self) -> dict[fx.Node, set[str]]:
        """Return for each node as what its readers want it."""
        wants: dict[fx.Node, set[str]] = {}
        for node in reversed(self._stage.graph.graph.nodes):
            wants[node] = set()
            for user in node.users:
                wants[node] |= self._wanted_by(user, node, wants)
        return wants

    def _wanted_by(self, user: fx.Node, node: fx.Node, wants: dict[fx.Node, set[str]]) -> set[str]:
        if not self._stage.rounds:
            return {_FLOATS}
        if user.op == "output":
            own = self._stage.stores and type(self._out) is self._stage.grid_kind
            return {_INTEGERS if own else _FLOATS}
        if is_layer(user):
            wanted = {_INTEGERS} if user.args[0] is node else set()
            if user.args[3] is node:
                # A residual stays on its grid up to a convolution; a linear layer adds floats.
                wanted.add(_INTEGERS if user.target is kernels.conv else _FLOATS)
            return wanted
        if user.target is aten.sym_size.int:
            return set()
        return wants[user] if self._selects(user) else {_FLOATS}

    def _selects(self, node: fx.Node) -> bool:
        return can_select(node, self._stage.grid_kind)

    def _floats_of(self, node: fx.Node) -> LocalFormat:
        """Return the float type that a layer writes: the one handed over if nobody else reads.

        Layers on a GPU write the numbers of another grid as well.
        """
        end = node
        while len(end.users) == 1:
            (user,) = end.users
            if user.op == "output":
                on_gpu, is_grid = self._stage.on_gpu, isinstance(self._out, Grid)
                written = isinstance(self._out, torch.dtype) or (on_gpu and is_grid)
                return self._out if written and self._stage.stores else self._rest
            if user.target not in VIEWS:
                break
            end = user
        return self._rest

    @property
    def _rest(self) -> torch.dtype:
        return self._stage.rest

    def _rounded(self, node: fx.Node) -> LocalFormat:
        grid = self._stage.grid(node)
        return grid if self._stage.stores else Rounded(grid)

    # Values

    def _set(self, node: fx.Node, form: _Format, value: fx.Node, scattered: bool = False) -> None:
        self._values[node] = {form: value}
        if scattered:
            self._scattered.add(node)

    def _primary(self, node: fx.Node) -> tuple[_Format, fx.Node]:
        return next(iter(self._values[node].items()))

    def _value(self, node: fx.Node, form: _Format) -> fx.Node:
        """Return a node of the new graph that holds a value in a format."""
        if node.op == "get_attr":
            return self._constant(str(node.target), form)
        known = self._values[node]
        if form not in known:
            source, value = self._primary(node)
            known[form] = value if source is None else self._convert(value, source, form)
        return known[form]

    def _constant(self, name: str, form: _Format) -> fx.Node:
        value = self._source[name]
        if value.dtype == torch.float32 and isinstance(form, torch.dtype):
            value = value.to(form)
            name = name if form is torch.float32 else f"{name}_{str(form).removeprefix('torch.')}"
        return self._hold(name, value)

    def _hold(self, name: str, value: Tensor) -> fx.Node:
        self._constants[name] = value
        return self._graph.get_attr(name)

    def _convert(self, value: fx.Node, source: _Format, form: _Format) -> fx.Node:
        call = self._graph.call_function
        if isinstance(source, Rounded) and source != form:
            source = torch.float32
        if source == form or form is None:
            return value
        if isinstance(source, Grid):
            dtype = form if isinstance(form, torch.dtype) else torch.float32
            function, numbers = source.reading(dtype)
            return self._convert(call(function, (value, *numbers)), dtype, form)
        if isinstance(form, Grid):
            function, numbers = form.storing()
            return call(function, (value, *numbers))
        if isinstance(form, Rounded):
            grid = form.grid
            value = self._convert(value, source, torch.float32)
            return call(
                quantise.fake_quantise, (value, grid.scale, float(grid.zero_point), float(grid.top))
            )
        return call(aten.to.dtype, (value, form))

    def _ordered(self, value: fx.Node, node: fx.Node) -> fx.Node:
        """Return a value in channels_last order, the order of all convolutions and borders."""
        like = node.meta.get("like")
        if node not in self._scattered or like is None or like.dim() != 4:
            return value
        options: dict[str, Any] = {"memory_format": torch.channels_last}
        return self._graph.call_function(aten.contiguous.default, (value,), options)

    # Operators

    def _layer(self, node: fx.Node) -> None:
        arguments: tuple[Any, ...] = node.args
        source, other, activation = arguments[0], arguments[3], arguments[-1]
        stage = self._stage
        floats = self._floats_of(node)
        takes: _Format = self._rest
        form: LocalFormat = floats
        if stage.rounds:
            takes = self._rounded(source)
        if stage.stores and self._wants[node] == {_INTEGERS}:
            form = stage.grid(node)
        elif not stage.stores:
            form = self._rest
        x = self._ordered(self._value(source, takes), source)
        added = None if other is None else self._added(node, other, form)
        packed = stage.packed[node.name]
        if packed.strides != (1, 1):
            x = self._graph.call_function(kernels.thin, (x, *packed.strides))

        def get(name: str) -> fx.Node:
            return self._hold(f"{node.name}_{name}", packed.tensors[name])

        target, values = packed.call(get, x, added, form, activation)
        result = self._graph.call_function(target, values)
        overwrites = stage.stores and not stage.on_gpu
        if added is not None and node.target is kernels.conv and overwrites:
            self._summed.append(result)
        self._set(node, form, result)

    def _added(self, node: fx.Node, other: fx.Node, form: LocalFormat) -> Added:
        stage = self._stage
        is_conv = node.target is kernels.conv
        if stage.stores and is_conv:
            takes: _Format = stage.grid(other) if isinstance(form, Grid) else form
        elif stage.level.kind == "emulated" and is_conv:
            takes = self._rounded(other)
        else:
            takes = self._rest
        value = self._ordered(self._value(other, takes), other)
        return Added(value, takes if isinstance(takes, Grid) else None)

    def _other(self, node: fx.Node) -> None:
        """Write an operator that is no layer."""
        if node.target is aten.sym_size.int:
            value: Any = node.args[0]
            arguments = (self._primary(value)[1], *node.args[1:])
            copied = self._graph.call_function(_BATCH_SIZE, arguments)
            self._set(node, None, copied)
        elif self._selects(node) and self._stage.rounds and self._wants[node] == {_INTEGERS}:
            self._select(node)
        else:
            self._compute(node)

    def _select(self, node: fx.Node) -> None:
        """Write an operator that passes rounded values on."""
        source: Any = node.args[0]
        form = self._rounded(source)
        x = self._value(source, form)
        is_pool = node.target is aten.max_pool2d.default
        if is_pool and isinstance(form, Grid):
            x = self._ordered(x, source)
            value = self._graph.call_function(
                kernels.max_pool_uint8, (x, *(pool_arguments(node) or ()))
            )
            self._set(node, form, value)
            return
        rest = fx.node.map_arg(node.args[1:], lambda n: self._value(n, None))
        target: Any = node.target
        value = self._graph.call_function(target, (x, *rest), dict(node.kwargs))
        scattered = source in self._scattered if is_pool else True
        self._set(node, form, value, scattered)

    def _compute(self, node: fx.Node) -> None:
        """Write an operator on floats, in the stage's float type if it is known to run there."""
        form = self._compute_type(node)

        def find(value: fx.Node) -> fx.Node:
            return self._value(value, form if _holds_floats(value) else None)

        target: Any = node.target
        arguments = fx.node.map_arg(node.args, find)
        options: Any = fx.node.map_arg(node.kwargs, find)
        if "device" in options and self._stage.on_gpu:
            options = {**options, "device": device.CUDA}
        result = self._graph.call_function(target, arguments, options)
        keeps = node.target in KEEPS_ORDER
        inputs = [value for value in node.all_input_nodes if value.op != "get_attr"]
        scattered = not keeps or any(value in self._scattered for value in inputs)
        self._set(node, form if _holds_floats(node) else None, result, scattered)

    def _compute_type(self, node: fx.Node) -> LocalFormat:
        if node.target is operator.getitem:
            source: Any = node.args[0]
            form = self._primary(source)[0]
            return form if isinstance(form, torch.dtype) else torch.float32
        inputs = [value for value in node.all_input_nodes if _holds_floats(value)]
        tensors = [value for value in node.all_input_nodes if _is_tensor(value)]
        plain = len(inputs) == len(tensors) and bool(inputs) and "dtype" not in node.kwargs
        return self._rest if plain and node.target in IN_BF16 else torch.float32

    def _protect_added(self) -> None:
        """Copy what a convolution would overwrite while somebody else still reads it."""
        order = {node: at for at, node in enumerate(self._graph.nodes)}
        for node in self._summed:
            value: Any = node.args[_ADDED_ARGUMENT]
            others = [user for user in value.users if user is not node]
            own = value.op == "placeholder" or value.target in _FRESH or _is_layer_call(value)
            if own and all(order[u] < order[node] and u.target not in _SHARING for u in others):
                continue
            with self._graph.inserting_before(node):
                copy = self._graph.call_function(aten.clone.default, (value,))
            node.update_arg(_ADDED_ARGUMENT, copy)


_ADDED_ARGUMENT = 6
"""Place of the tensor that qconv2d_pointwise.binary overwrites."""

_SHARING: set[Any] = {*VIEWS, aten.contiguous.default, aten.unbind.int, aten.expand.default}


def _is_layer_call(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op == "call_function" and name.startswith(("onednn.", "mkldnn."))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("like"), Tensor) or _is_list(node)


def _is_list(node: fx.Node) -> bool:
    return node.target in (aten.unbind.int, aten.split.Tensor, aten.chunk.default)


def _holds_floats(node: fx.Node) -> bool:
    like = node.meta.get("like")
    if isinstance(like, Tensor):
        return like.dtype == torch.float32
    if _is_list(node):
        source: Any = node.args[0]
        return _holds_floats(source)
    return False
