"""Networks cut into stages whose interiors can be narrowed.

A stage is built by a function of its width: `make(1.0)` gives the full stage, `make(0.25)` one with
a quarter of the interior channels and the same border shapes. The narrower ones own no weights:
each weight is the leading slice of the full stage's weight (slimmable networks: Yu et al.,
arXiv:1812.08928). Batch normalisation is the exception: statistics differ with the width, so every
width has its own. `SlimmableStage.narrow` gives a plain module for one width that shares storage.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

WIDTHS: Final = (1.0, 0.5, 0.25)
"""Shares of the interior that networks are trained for, unless they say others."""

NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules that every width has its own of."""

_SHAPES: Final = "_tied_shapes"  # what a narrower stage's modules keep of the weights they lack


def narrowed(channels: int, fraction: float) -> int:
    """Return how many of the interior channels are left at a width: at least one."""
    return max(1, round(channels * fraction))


class SlimmableStage(nn.Module):
    """A stage that runs at several interior widths.

    Attributes:
        widths: The fractions on offer, widest (1.0) first.
        full: The stage at full width; it owns the weights.
        narrower: One module for each further width. Their weights are absent except while they
            run, where they are slices of the full ones; their normalisations are their own.
    """

    def __init__(
        self, make: Callable[[float], nn.Module], widths: Sequence[float] = WIDTHS
    ) -> None:
        """Build a stage.

        Args:
            make: Builds the stage at a width; same border shapes at every width, no layer that the
                full stage lacks, and no weight longer in any dimension than at full width.
            widths: Fractions in (0, 1], falling, beginning with 1.0.

        Raises:
            ValueError: The widths are not such fractions, or a narrower stage does not fit.
        """
        super().__init__()
        if list(widths) != sorted({*widths}, reverse=True) or not widths or widths[0] != 1.0:
            raise ValueError(f"widths are {tuple(widths)}; expected 1.0 and then falling fractions")
        self.widths = tuple(widths)
        self.full = make(1.0)
        self.narrower = nn.ModuleList(make(fraction) for fraction in widths[1:])
        for narrow in self.narrower:
            _drop_weights(self.full, narrow)

    def forward(self, x: Tensor, width: float = 1.0) -> Tensor:
        """Run the stage at a width.

        Args:
            x: What the stage before hands over.
            width: One of `widths`.

        Returns:
            The stage's output; its shape does not depend on the width.
        """
        if width == 1.0:
            return _tensor(self.full(x))
        module = self.narrower[self.position(width) - 1]
        tied = _tied(self.full, module)
        try:
            for leaf, name, weight in tied:
                del leaf._parameters[name]
                leaf.__dict__[name] = weight
            return _tensor(module(x))
        finally:
            # A slice that stayed would keep the graph of this call alive, and refuse to be copied.
            for leaf, name, _ in tied:
                leaf.__dict__.pop(name, None)
                leaf.register_parameter(name, None)

    def position(self, width: float) -> int:
        """Return the place of a width among the stage's.

        Raises:
            ValueError: The stage has no such width.
        """
        if width not in self.widths:
            raise ValueError(f"no width {width}; this stage has {self.widths}")
        return self.widths.index(width)

    def narrow(self, fraction: float) -> nn.Module:
        """Return a plain module that computes the stage at one width, in evaluation mode.

        Args:
            fraction: One of `widths`.

        Returns:
            A module whose weights and normalisations share storage with this stage and ask for no
            gradients.

        Raises:
            ValueError: The stage has no such width.
        """
        source = self.full if fraction == 1.0 else self.narrower[self.position(fraction) - 1]
        plain = _structure(source)
        for leaf, name, weight in _tied(self.full, plain):
            leaf.register_parameter(name, nn.Parameter(weight))
        for leaf in plain.modules():
            leaf.__dict__.pop(_SHAPES, None)
            for name, weight in leaf.named_parameters(recurse=False):
                shared = nn.Parameter(weight.detach(), requires_grad=False)
                leaf.register_parameter(name, shared)
        return plain.eval()

    def norms(self, width: float) -> list[nn.Module]:
        """Return the normalisations of one width."""
        module = self.full if width == 1.0 else self.narrower[self.position(width) - 1]
        return [norm for norm in module.modules() if isinstance(norm, NORMS)]


class SlimmableNetwork(nn.Module):
    """A chain of named stages.

    Attributes:
        name: What the network is called.
        input_shape: Shape of one sample.
        classes: Number of outputs.
        chain: The stages in order, by name.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, SlimmableStage],
        input_shape: tuple[int, ...],
        classes: int,
    ) -> None:
        super().__init__()
        self.name = name
        self.input_shape = input_shape
        self.classes = classes
        self.chain = nn.ModuleDict(stages)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order."""
        return tuple(self.chain)

    def stages(self) -> tuple[SlimmableStage, ...]:
        """Return the stages in order."""
        return tuple(stage for stage in self.chain.values() if isinstance(stage, SlimmableStage))

    @property
    def widths(self) -> tuple[float, ...]:
        """All widths that some stage has, widest first."""
        return tuple(sorted({w for stage in self.stages() for w in stage.widths}, reverse=True))

    def uniform(self, width: float) -> tuple[float, ...]:
        """Return for every stage the smallest width that it has of those not below a width."""
        return tuple(min(w for w in stage.widths if w >= width) for stage in self.stages())

    def forward(self, x: Tensor, widths: Sequence[float] | None = None) -> Tensor:
        """Run the network.

        Args:
            x: float32 [n, *input_shape].
            widths: One for each stage; None: full width.

        Returns:
            float32 [n, classes], logits.

        Raises:
            ValueError: Another number of widths than stages, or a width that a stage lacks.
        """
        stages = self.stages()
        widths = (1.0,) * len(stages) if widths is None else tuple(widths)
        if len(widths) != len(stages):
            raise ValueError(f"{len(widths)} widths for the {len(stages)} stages of {self.name}")
        for stage, width in zip(stages, widths, strict=True):
            x = stage(x, width)
        return x

    def plain_stages(self, widths: Sequence[float] | None = None) -> list[nn.Module]:
        """Return plain modules of all stages, see `SlimmableStage.narrow`."""
        chosen = (1.0,) * len(self.stages()) if widths is None else tuple(widths)
        return [s.narrow(width) for s, width in zip(self.stages(), chosen, strict=True)]

    def example(self, n: int = 2) -> Tensor:
        """Return an input of the right shape: float32 [n, *input_shape], a ramp over [0, 1]."""
        size = n * math.prod(self.input_shape)
        return torch.linspace(0.0, 1.0, size).reshape(n, *self.input_shape)


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a stage returned {type(value).__name__}; expected one tensor")
    return value


def _weight_places(module: nn.Module) -> list[tuple[str, str]]:
    """Name the weights (module path, name) that widths share."""
    return [
        (path, name)
        for path, leaf in module.named_modules()
        if not isinstance(leaf, NORMS)
        for name in leaf._parameters
        if leaf._parameters[name] is not None
    ]


def _drop_weights(full: nn.Module, narrow: nn.Module) -> None:
    """Take the weights out of a narrower module and note the shapes that it needs.

    Raises:
        ValueError: A weight is no leading slice of the full one.
    """
    extra = sorted(set(_weight_places(narrow)) - set(_weight_places(full)))
    if extra:
        raise ValueError(
            f"a narrower stage has weight {'.'.join(extra[0])}, which the full one lacks"
        )
    for path, name in _weight_places(narrow):
        leaf = narrow.get_submodule(path)
        shape = leaf.get_parameter(name).shape
        whole = full.get_submodule(path).get_parameter(name).shape
        if len(shape) != len(whole) or any(a > b for a, b in zip(shape, whole, strict=True)):
            raise ValueError(
                f"weight {path}.{name} has shape {tuple(shape)} in a narrower stage; expected at "
                f"most {tuple(whole)} in every dimension"
            )
        leaf.register_parameter(name, None)
        shapes = leaf.__dict__.setdefault(_SHAPES, {})
        shapes[name] = tuple(shape)


def _tied(full: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Pair the places of a module's weights with slices of the full weights."""
    tied = []
    paths = {path for path, _ in module.named_modules()}
    for path, name in _weight_places(full):
        if path not in paths:  # a narrower stage may leave layers out
            continue
        leaf = module.get_submodule(path)
        weight = full.get_submodule(path).get_parameter(name)
        shape = leaf.__dict__.get(_SHAPES, {}).get(name, weight.shape)
        tied.append((leaf, name, weight[tuple(slice(0, size) for size in shape)]))
    return tied


def _structure(module: nn.Module) -> nn.Module:
    """Copy a module that holds the very same tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
