"""From modules to graphs: one exported ATen graph per stage, with a dynamic batch dimension.

A captured graph is an fx.GraphModule with one placeholder `x`, constants as buffers with flat
names, and one tensor as result. Constants are copies: training the source module on changes
nothing here, and nothing here changes the source module.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn

from runtime.precision.names import closest

_BATCH = 3
"""Batch size of the example: not 1, which torch.export would take for a constant."""

_MOST = 1 << 16
"""Largest batch that a captured graph promises to accept."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all inside it into evaluation mode, and back afterwards."""
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


def capture(module: nn.Module, shape: Sequence[int], what: str) -> fx.GraphModule:
    """Export a module.

    Args:
        module: Takes one float32 tensor with the batch in front, returns one tensor.
        shape: Of one input, without the batch.
        what: What to call it in messages.

    Returns:
        Its graph; nodes keep their `nn_module_stack`, not the shapes seen while exporting.

    Raises:
        ValueError: It does not take such inputs, torch.export refuses it, or it has not exactly one
            tensor as result.
    """
    example = torch.zeros(_BATCH, *shape)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    with evaluating(module), torch.no_grad(), warnings.catch_warnings(), _quiet():
        # torch.export warns about its own internals.
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
            if any(_is_mutating(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
        except Exception as error:
            own = _own_error(module, example)
            if own is None:
                raise ValueError(_refused(what, error, shape)) from error
            given = f"inputs [{_said_shape(shape)}], which are what comes to it"
            raise ValueError(f"{what} does not take {given}: {_reason(own)}") from own
    if program.graph_signature.buffers_to_mutate:
        names = ", ".join(program.graph_signature.buffers_to_mutate.values())
        raise ValueError(f"{what} changes its buffers when it runs ({names}); stages keep no state")
    return _flat(program, what)


def _own_error(module: nn.Module, example: Tensor) -> Exception | None:
    """Return what a module raises by itself, whoever runs it."""
    try:
        module(example)
    except Exception as error:
        return error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export from logging and printing pages about what is then said in an error."""
    names = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _said_shape(shape: Sequence[int]) -> str:
    return ", ".join(map(str, ("batch", *shape)))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _refused(what: str, error: Exception, shape: Sequence[int]) -> str:
    hint = (
        "it fixes the batch size; write shapes with x.shape[0]"
        if "batch" in str(error) and "onstraint" in str(error)
        else "it must be traceable: no branches on values, tensors in and out"
    )
    return (
        f"torch.export refuses {what} for inputs [{_said_shape(shape)}]: {_reason(error)} ({hint})"
    )


def _is_mutating(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _flat(program: Any, what: str) -> fx.GraphModule:
    signature = program.graph_signature
    sources: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored = {**program.constants, **program.state_dict}
    constants: dict[str, Tensor] = {}
    graph = fx.Graph()
    environment: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in sources:
            source = sources[node.name]
            name = _flat_name(source)
            constants[name] = stored[source].detach().clone()
            environment[node] = graph.get_attr(name)
            environment[node].meta = {"source": source}
        elif node.op == "placeholder":
            environment[node] = graph.placeholder("x")
        elif node.op == "output":
            graph.output(environment[_only_result(node, what)])
        else:
            environment[node] = graph.node_copy(node, environment.__getitem__)
    return assemble(graph, constants)


def _only_result(node: fx.Node, what: str) -> fx.Node:
    results: Any = node.args[0]
    if len(results) != 1 or not isinstance(results[0], fx.Node):
        raise ValueError(f"{what} returns {len(results)} values; a stage returns one tensor")
    if not isinstance(results[0].meta.get("val"), Tensor):
        raise ValueError(f"{what} returns {results[0].name}, which is not a tensor")
    return results[0]


def _flat_name(name: str) -> str:
    return "c_" + "".join(c if c.isalnum() else "_" for c in name)


def assemble(graph: fx.Graph, constants: dict[str, Tensor]) -> fx.GraphModule:
    """Return a graph with those of the constants that it uses, dead nodes removed."""
    graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    root = {name: tensor for name, tensor in constants.items() if name in used}
    # The get_attr nodes of constants that are gone went with the dead code.
    return fx.GraphModule(root, graph)


def constants_of(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return the constants of a graph by name."""
    return dict(graph.named_buffers())


def cut(graph: fx.GraphModule, points: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a captured graph behind named submodules.

    Args:
        graph: From `capture`.
        points: Qualified names of submodules, in order; each piece ends with the result of one.

    Returns:
        One piece more than there are points.

    Raises:
        ValueError: An unknown name, a submodule without exactly one result, points out of order,
            or a cut that more than one tensor crosses.
    """
    ends = [_result_of(graph, point) for point in points]
    order = {node: at for at, node in enumerate(graph.graph.nodes)}
    pieces: list[fx.GraphModule] = []
    done: set[fx.Node] = set()
    for point, end in zip(points, ends, strict=True):
        inside = _ancestors(end) - done
        if end in done or not inside:
            raise ValueError(f"cut {point!r} comes before the cut in front of it; order the cuts")
        _refuse_crossings(point, end, done | inside)
        pieces.append(_piece(graph, sorted(inside, key=order.__getitem__), end, pieces, ends))
        done |= inside
    rest = [node for node in graph.graph.nodes if node not in done and node.op != "output"]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    last: Any = output.args[0]
    if last in done:
        raise ValueError(f"nothing is left behind the last cut {points[-1]!r}; leave it out")
    pieces.append(_piece(graph, rest, last, pieces, ends))
    return pieces


def _stack(node: fx.Node) -> list[str]:
    entries = (node.meta.get("nn_module_stack") or {}).values()
    return [str(entry[0]) for entry in entries]


def _result_of(graph: fx.GraphModule, point: str) -> fx.Node:
    inside = [node for node in graph.graph.nodes if point in _stack(node)]
    if not inside:
        known = dict.fromkeys(name for node in graph.graph.nodes for name in _stack(node) if name)
        raise ValueError(
            f"no submodule {point!r} to cut behind; expected of {', '.join(known)}"
            f"{closest(point, known)}"
        )
    members = set(inside)
    results = [node for node in inside if any(user not in members for user in node.users)]
    results = [node for node in results if isinstance(node.meta.get("val"), Tensor)]
    if len(results) != 1:
        names = ", ".join(node.name for node in results)
        raise ValueError(
            f"cut {point!r} has {len(results)} results ({names}); a stage hands over one tensor"
        )
    result: fx.Node = results[0]
    return result


def _ancestors(end: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _refuse_crossings(point: str, end: fx.Node, before: set[fx.Node]) -> None:
    crossing = [
        node
        for node in before
        if node.op != "get_attr"
        and not _is_batch_size(node)
        and any(user not in before and not _is_batch_size(user) for user in node.users)
    ]
    if crossing != [end]:
        names = ", ".join(sorted(node.name for node in crossing))
        raise ValueError(
            f"the cut behind {point!r} is crossed by {len(crossing)} tensors ({names}); a stage "
            "hands over one tensor: cut elsewhere, for example behind the block they belong to"
        )


def _is_batch_size(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int and bool(node.args[1] == 0)


def _piece(
    graph: fx.GraphModule,
    nodes: list[fx.Node],
    end: fx.Node,
    pieces: list[fx.GraphModule],
    ends: list[fx.Node],
) -> fx.GraphModule:
    """Copy nodes into a graph of their own; what they read from before is its placeholder."""
    piece = fx.Graph()
    environment: dict[fx.Node, fx.Node] = {}
    if pieces:
        environment[ends[len(pieces) - 1]] = piece.placeholder("x")

    def find(node: fx.Node) -> fx.Node:
        if node not in environment:
            if node.op == "get_attr":
                environment[node] = piece.get_attr(str(node.target))
            else:
                # The batch size, known from this stage's own input.
                entry = next(known for known in piece.nodes if known.op == "placeholder")
                size: Any = torch.ops.aten.sym_size.int
                environment[node] = piece.call_function(size, (entry, 0))
        return environment[node]

    for node in nodes:
        if node.op == "get_attr" or _is_batch_size(node):
            # Written where they are read.
            continue
        environment[node] = piece.node_copy(node, find)
    piece.output(environment[end])
    return assemble(piece, constants_of(graph))
