"""A network as a chain of named stages, each one captured graph.

Sources: an nn.Sequential, a list of (name, module), or one module with named points to cut at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from runtime.precision.capture import capture, constants_of, cut
from runtime.precision.names import closest
from runtime.precision.simplify import simplify

_BATCH = 3
"""Batch size of the examples that graphs are tried on."""


class WidthError(ValueError):
    """A stage does not offer a width."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: What it is called.
        graph: What it computes in fp32, in the common form of `simplify`.
        input_shape: Of one input, without the batch.
        output_shape: Of one result, without the batch.
        module: Where it came from if it is a module of its own; may offer `narrow`.
    """

    name: str
    graph: fx.GraphModule
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    module: nn.Module | None = None

    def narrowed(self, width: float) -> fx.GraphModule:
        """Return the graph at a smaller interior width, `graph` itself at width 1.

        Args:
            width: Share of the interior channels, as in `Level.width`.

        Raises:
            WidthError: The stage offers no such width.
            ValueError: Its border has another shape there, or it cannot be captured.
        """
        if width == 1.0:
            return self.graph
        make = getattr(self.module, "narrow", None)
        if make is None:
            raise WidthError(
                f"stage {self.name!r} has no width {width:g}: its module offers no "
                "narrow(fraction) -> nn.Module"
            )
        what = f"stage {self.name!r} at width {width:g}"
        try:
            module = make(width)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise WidthError(f"{what} is refused by its module: {error}") from error
        graph, shape = _captured(module, self.input_shape, what)
        if shape != self.output_shape:
            raise ValueError(
                f"{what} hands over {_say(shape)}, at full width {_say(self.output_shape)}; "
                "widths may differ inside a stage only"
            )
        return graph


class StagedNetwork:
    """A chain of stages.

    Attributes:
        stages: In order; each takes what the one before hands over.
        input_shape: Of one input of the first stage, without the batch.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Chain stages; the class methods build them.

        Raises:
            ValueError: None, names not unique, or shapes that do not fit.
        """
        if not stages:
            raise ValueError("a staged network has at least one stage; got none")
        names = [stage.name for stage in stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stages named twice: {', '.join(twice)}; give each its own name")
        for before, after in pairwise(stages):
            if before.output_shape != after.input_shape:
                raise ValueError(
                    f"stage {before.name!r} hands over {_say(before.output_shape)} but stage "
                    f"{after.name!r} takes {_say(after.input_shape)}"
                )
        self.stages = tuple(stages)
        self.input_shape = stages[0].input_shape

    @classmethod
    def from_modules(
        cls, modules: Iterable[tuple[str, nn.Module]], input_shape: Sequence[int]
    ) -> StagedNetwork:
        """Stage a list of named modules, each one stage.

        Args:
            modules: In order, for example `net.stages.items()` of an nn.ModuleDict.
            input_shape: Of one input, without the batch.

        Raises:
            ValueError: A module cannot be captured; the message names its stage.
        """
        stages = []
        shape = tuple(input_shape)
        for name, module in modules:
            graph, result = _captured(module, shape, f"stage {name!r}")
            stages.append(Stage(name, graph, shape, result, module))
            shape = result
        return cls(stages)

    @classmethod
    def from_sequential(cls, network: nn.Sequential, input_shape: Sequence[int]) -> StagedNetwork:
        """Stage an nn.Sequential, each child one stage with the child's name."""
        return cls.from_modules(network.named_children(), input_shape)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        cuts: Sequence[str],
        input_shape: Sequence[int],
        last: str = "head",
    ) -> StagedNetwork:
        """Stage one module, cut behind named submodules.

        Args:
            module: One that torch.export accepts.
            cuts: Qualified names of submodules, in order. Each stage is named after the one it
                ends with.
            input_shape: Of one input, without the batch.
            last: Name of the last stage.

        Raises:
            ValueError: torch.export refuses the module, a name is unknown, or more than one tensor
                crosses a cut.
        """
        pieces = cut(capture(module, input_shape, "the module"), cuts)
        stages = []
        example = torch.zeros(_BATCH, *input_shape)
        for name, piece in zip([*cuts, last], pieces, strict=True):
            graph = simplify(piece, example)
            result = _result(graph, example, f"stage {name!r}")
            _refuse_mixing(graph, tuple(example.shape[1:]), f"stage {name!r}")
            shapes = tuple(example.shape[1:]), tuple(result.shape[1:])
            stages.append(Stage(name, graph, *shapes))
            example = result
        return cls(stages)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages."""
        return tuple(stage.name for stage in self.stages)

    def index(self, name: str) -> int:
        """Return the place of a stage.

        Raises:
            ValueError: No stage has that name; the message names the closest.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise ValueError(f"no stage {name!r}; expected of {known}{closest(name, self.names)}")
        return self.names.index(name)

    def __call__(self, x: Tensor) -> Tensor:
        """Run all stages in plain fp32 torch."""
        with torch.no_grad():
            for stage in self.stages:
                x = stage.graph(x)
        return x


def fingerprint(graph: fx.GraphModule) -> str:
    """Return a hash of what a graph computes: its operators and all its constants."""
    digest = hashlib.sha256(graph.code.encode())
    for name, tensor in sorted(constants_of(graph).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _captured(
    module: nn.Module, shape: tuple[int, ...], what: str
) -> tuple[fx.GraphModule, tuple[int, ...]]:
    graph = capture(module, shape, what)
    example = torch.zeros(_BATCH, *shape)
    simple = simplify(graph, example)
    result = _result(simple, example, what)
    _refuse_mixing(simple, shape, what)
    return simple, tuple(result.shape[1:])


def _result(graph: fx.GraphModule, example: Tensor, what: str) -> Tensor:
    with torch.no_grad():
        result: Any = graph(example)
    if result.dtype != torch.float32:
        raise ValueError(f"{what} hands over {result.dtype}; stages hand over torch.float32")
    if result.dim() < 1 or result.shape[0] != example.shape[0]:
        raise ValueError(
            f"{what} makes {_say(tuple(result.shape))} of a batch of {example.shape[0]}; "
            "the batch stays the first dimension"
        )
    return torch.zeros_like(result)


def _refuse_mixing(graph: fx.GraphModule, shape: tuple[int, ...], what: str) -> None:
    """Refuse a stage whose samples see one another: batches are padded, which would show."""
    x = torch.rand(_BATCH, *shape, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        together, alone = graph(x), graph(x[:1])
    size = max(float(together.abs().max()), 1e-6)
    if math.isfinite(size) and float((together[:1] - alone).abs().max()) > 1e-3 * size:
        raise ValueError(f"{what} mixes the samples of a batch; each must be computed by itself")


def _say(shape: Sequence[int]) -> str:
    return "[batch, " + ", ".join(map(str, shape)) + "]"
