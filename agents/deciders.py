"""What agents of all domains have in common: interfaces, adapters, episodes, coordinate descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

SnapshotT = TypeVar("SnapshotT", contravariant=True)
PlanT = TypeVar("PlanT", covariant=True)


class Decider(Protocol[SnapshotT, PlanT]):
    """Decides for one cluster or server, simulated or real."""

    @property
    def name(self) -> str:
        """What the agent is called in tables."""

    def reset(self) -> None:
        """Forget the past; called before every episode."""

    def decide(self, snapshot: SnapshotT) -> PlanT:
        """Return the plan proposed until the next decision."""


class Worlds(Protocol):
    """N simulated clusters or servers behind one step function."""

    @property
    def n(self) -> int:
        """Number of them."""

    @property
    def engine(self) -> Any:
        """What advances them; `engine.snapshot(k)` is what the controller of world k sees."""


WorldsT = TypeVar("WorldsT", bound=Worlds, contravariant=True)


class BatchDecider(Protocol[WorldsT]):
    """Decides for N simulated clusters or servers at once."""

    def begin(self, clusters: WorldsT, /) -> None:
        """Forget the past; called before the episodes start."""

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return proposed plans, float64 [N, plan columns].

        Args:
            observation: float32 [N, size] of the environment's codec.
            signals: float64 [N, signals].
        """


class RowPlan(Protocol):
    """A plan that can be written as a row."""

    def to_row(self) -> NDArray[np.float64]:
        """Return the plan as float64 [plan columns]."""


class Separately:
    """Runs one agent of a single world in each of N worlds."""

    observes = False

    def __init__(
        self, make_agent: Callable[[int], Decider[Any, RowPlan]], *, decides: bool = True
    ) -> None:
        """Keep the factory.

        Args:
            make_agent: Builds the agent of world k.
            decides: Whether these agents look at what happens; see `agents.precision.api.decides`.
        """
        self._make_agent, self.decides = make_agent, decides
        self._agents: list[Decider[Any, RowPlan]] = []

    def begin(self, worlds: Worlds) -> None:
        """Build one agent per world."""
        self._worlds = worlds
        self._agents = [self._make_agent(k) for k in range(worlds.n)]
        for agent in self._agents:
            agent.reset()

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Ask every agent; see `BatchDecider`."""
        snapshots = (self._worlds.engine.snapshot(k) for k in range(self._worlds.n))
        plans = [a.decide(s) for a, s in zip(self._agents, snapshots, strict=True)]
        return np.stack([plan.to_row() for plan in plans])


class ConstantRows:
    """Proposes the same plan at every decision, another one in every world."""

    decides = observes = False

    def __init__(self, rows: NDArray[np.float64]) -> None:
        """Keep plan rows, float64 [N, plan columns]."""
        self._rows = rows

    def begin(self, worlds: Worlds) -> None:
        """Nothing to forget."""

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the rows; see `BatchDecider`."""
        return self._rows


class Constant(Generic[PlanT]):
    """Always proposes the same plan, in one world."""

    decides = False

    def __init__(self, name: str, plan: PlanT) -> None:
        """Keep name and plan."""
        self._name, self.plan = name, plan

    @property
    def name(self) -> str:
        """What the agent is called in tables."""
        return self._name

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, snapshot: object) -> PlanT:
        """Return the plan."""
        return self.plan


class Episodes(NamedTuple):
    """Which episodes to run; the same ones for all agents that are compared.

    Attributes:
        keys: uint64 [N].
        starts: int64 [N], first ticks in the arrivals.
    """

    keys: NDArray[np.uint64]
    starts: NDArray[np.int64]


def descend(
    losses: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    shape: tuple[int, int, int],
    passes: int,
) -> NDArray[np.int64]:
    """Search the choice per segment with the lowest loss, by coordinate descent.

    Starting from the choice that is best everywhere, segment after segment takes the one that
    makes the loss of the whole lowest, the other segments fixed. Several searches go side by side.

    Args:
        losses: Returns the loss of each of some choices in each search, float64 [searches,
            choices], from int64 [searches, choices, segments].
        shape: Number of searches, of choices, of segments.
        passes: How often all segments are gone through.

    Returns:
        int64 [searches, segments].
    """
    searches, n, segments = shape
    own = np.arange(searches)
    trial = np.tile(np.arange(n)[None, :, None], (searches, 1, segments))
    best = trial[own, losses(trial).argmin(axis=1)]
    for _ in range(passes):
        before = best.copy()
        for segment in range(segments):
            trial = np.repeat(best[:, None], n, axis=1)
            trial[:, :, segment] = np.arange(n)
            best = trial[own, losses(trial).argmin(axis=1)]
        if (best == before).all():
            break
    return best
