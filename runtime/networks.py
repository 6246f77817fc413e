"""The networks that policy bundles hold, in numpy alone, and the choice of the preferred action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
State: TypeAlias = tuple[Floats, Floats] | None
"""Hidden and cell state of N worlds, each float32 [N, hidden]; None without memory."""

ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0.0)),
}


@dataclass(frozen=True, eq=False)
class Network:
    """A perceptron: hidden layers, then one linear layer of action preferences.

    Attributes:
        layers: Pairs of weight float32 [out, in] and bias float32 [out].
        activation: After each hidden layer: a name of `ACTIVATIONS`.
    """

    layers: tuple[tuple[Floats, Floats], ...]
    activation: str = "tanh"

    def __post_init__(self) -> None:
        """Refuse unknown activations.

        Raises:
            ValueError: Names it.
        """
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; expected one of {list(ACTIVATIONS)}"
            )

    def __call__(self, observation: Floats) -> Floats:
        """Return preferences float32 [..., sum(nvec)] for observations float32 [..., size]."""
        activate = ACTIVATIONS[self.activation]
        x = observation
        for weight, bias in self.layers[:-1]:
            x = activate(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return x @ weight.T + bias

    def start(self, n: int) -> State:
        """Return the state before the first of N decisions: a perceptron has none."""
        return None

    def advance(self, observation: Floats, state: State) -> tuple[Floats, State]:
        """Return the preferences and the next state; see `RecurrentNetwork.advance`."""
        return self(observation), state

    def check(self, width: int, outputs: int) -> None:
        """Refuse layers that do not fit each other, the observation or the actions.

        Args:
            width: Length of an observation.
            outputs: Number of preferences, sum(nvec).

        Raises:
            ValueError: Names the layer, or what its number of outputs should be.
        """
        for i, (weight, bias) in enumerate(self.layers):
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != (weight.shape[0],):
                raise ValueError(
                    f"layer {i} has weight {weight.shape} and bias {bias.shape}; expected "
                    f"[n, {width}] and [n]"
                )
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                raise ValueError(f"layer {i} holds a number that is not finite")
            width = weight.shape[0]
        if width != outputs or not self.layers:
            raise ValueError(f"the network has {width} outputs; its actions need {outputs}")

    def tensors(self) -> dict[str, Floats]:
        """Return the layers' arrays by name."""
        result = {}
        for i, (weight, bias) in enumerate(self.layers):
            result[f"{i}.weight"], result[f"{i}.bias"] = weight, bias
        return result


@dataclass(frozen=True, eq=False)
class RecurrentNetwork:
    """A long short-term memory cell of H units, then a perceptron on its hidden state.

    Gates are stacked in the order input, forget, cell, output (as torch does).

    Attributes:
        input_weight: float32 [4 * H, size].
        state_weight: float32 [4 * H, H].
        bias: float32 [4 * H].
        head: The perceptron.
    """

    input_weight: Floats
    state_weight: Floats
    bias: Floats
    head: Network

    @property
    def units(self) -> int:
        """Number of units H."""
        return len(self.bias) // 4

    def start(self, n: int) -> State:
        """Return the state before the first of N decisions: zeros."""
        shape = (n, self.units)
        return np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)

    def advance(self, observation: Floats, state: State) -> tuple[Floats, State]:
        """Take in one observation of each of N worlds.

        Args:
            observation: float32 [N, size].
            state: Of `start` or of the last call.

        Returns:
            Preferences float32 [N, sum(nvec)] and the next state.
        """
        assert state is not None
        hidden, cell = state
        gates = observation @ self.input_weight.T + hidden @ self.state_weight.T + self.bias
        h = self.units
        opened = _sigmoid(gates[:, : 2 * h])
        cell = opened[:, h:] * cell + opened[:, :h] * np.tanh(gates[:, 2 * h : 3 * h])
        hidden = _sigmoid(gates[:, 3 * h :]) * np.tanh(cell)
        return self.head(hidden), (hidden, cell)

    def check(self, width: int, outputs: int) -> None:
        """Refuse arrays that do not fit; see `Network.check`."""
        h = self.units
        shapes = {"input_weight": (4 * h, width), "state_weight": (4 * h, h), "bias": (4 * h,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(
                    f"lstm {name} has shape {array.shape}; expected {shape}, all finite"
                )
        self.head.check(h, outputs)

    def tensors(self) -> dict[str, Floats]:
        """Return all arrays by name."""
        own = {f"lstm.{name}": getattr(self, name) for name in _LSTM}
        return own | self.head.tensors()


_LSTM = ("input_weight", "state_weight", "bias")


def _sigmoid(x: Floats) -> Floats:
    half = np.float32(0.5)  # the form with tanh never overflows, 1 / (1 + exp(-x)) does
    result: Floats = half + half * np.tanh(half * x)
    return result


def network_from(tensors: dict[str, NDArray[Any]], activation: str = "tanh") -> Network:
    """Build a perceptron from the arrays of its `tensors`; others are ignored.

    Raises:
        KeyError: A layer is missing.
        ValueError: Unknown activation.
    """
    n = sum(name.partition(".")[0].isdigit() for name in tensors) // 2
    layers = tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(n))
    return Network(layers, activation)


def recurrent_from(tensors: dict[str, NDArray[Any]], activation: str = "tanh") -> RecurrentNetwork:
    """Build a recurrent network from the arrays of its `tensors`; others are ignored.

    Raises:
        KeyError: An array is missing.
        ValueError: Unknown activation.
    """
    cell = {name: tensors[f"lstm.{name}"] for name in _LSTM}
    return RecurrentNetwork(**cell, head=network_from(tensors, activation))


class Preferred:
    """Picks the most preferred choice of every dimension of an action."""

    def __init__(self, nvec: Sequence[int]) -> None:
        """Lay out a table with one row per dimension.

        Args:
            nvec: Number of choices per dimension.
        """
        dimension = np.repeat(np.arange(len(nvec)), nvec)
        choice = np.concatenate([np.arange(n) for n in nvec])
        self._shape = (len(nvec), max(nvec))
        self._place = dimension * max(nvec) + choice
        self._padded = np.full(self._shape, -np.inf, dtype=np.float32)

    def one(self, preferences: Floats) -> NDArray[np.int64]:
        """Return the choices of one world, int64 [len(nvec)], by preferences [sum(nvec)]."""
        self._padded.flat[self._place] = preferences
        choice: NDArray[np.int64] = self._padded.argmax(axis=1)
        return choice

    def rows(self, preferences: Floats) -> NDArray[np.int64]:
        """Return the choices of N worlds, int64 [N, len(nvec)], by preferences [N, sum(nvec)]."""
        padded = np.full((len(preferences), self._padded.size), -np.inf, dtype=np.float32)
        padded[:, self._place] = preferences
        choice: NDArray[np.int64] = padded.reshape(-1, *self._shape).argmax(axis=2)
        return choice
