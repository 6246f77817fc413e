"""Guards: what stands between any agent and the bank, simulated or real.

Batched over N servers, so that an environment and a controller (N = 1) run the same code. In order:
a proposal that is no plan, or a snapshot with a missing signal, leads to the safe plan (the
training mode's table); levels are cut to each stage's floor and ceiling; an assignment that breaks
the accuracy floor or the latency target is replaced by the nearest one that does not, by the rule
for conflicts; a move that reverses a recent one is undone, unless staying would break floor or
target.
"""

from __future__ import annotations

import math
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from runtime.precision.actions import ActionCodec, TableActions
from runtime.precision.guard_tables import Allowed, BankTables, PrecisionLimits
from runtime.precision.plan import PrecisionPlan
from runtime.precision.snapshot import PrecisionSnapshot, SignalLayout


class PrecisionCause(IntFlag):
    """Why a guard changed a plan."""

    NON_FINITE = 1  # the proposal was no plan
    MISSING_SIGNAL = 2  # a monitor was silent
    BOUNDS = 4  # a level or margin beyond its limits
    ACCURACY = 8  # the accuracy floor
    LATENCY = 16  # the latency target
    CONFLICT = 32  # both could not hold
    DWELL = 64  # a move that reverses a recent one


class PrecisionGuards:
    """Projects proposed plans of N servers onto what may be applied now."""

    def __init__(
        self,
        limits: PrecisionLimits,
        bank: BankTables,
        safe: PrecisionPlan,
        layout: SignalLayout,
        n: int = 1,
    ) -> None:
        """Start with the safe plan in force.

        Args:
            limits: What to enforce.
            bank: Accuracy and latency of every assignment.
            safe: The plan that replaces a proposal that is no plan, and every proposal while a
                signal is missing.
            layout: Columns of the signals.
            n: Number of servers N.

        Raises:
            ValueError: Limits or a safe plan that do not fit the bank, or a safe plan outside the
                limits' levels or below the accuracy floor.
        """
        self.limits, self.bank, self.safe = limits, bank, safe
        self.tables = Allowed(limits, bank)
        s = bank.n_stages
        self._stages = s
        self._radix = bank.n_levels ** np.arange(s - 1, -1, -1)
        self._low = np.concatenate([self.tables.low, [0.0], self.tables.low])
        self._high = np.concatenate([self.tables.high, [1.0], self.tables.high])
        self._safe_row = safe.to_row()
        self._check_safe()
        self._has_target = math.isfinite(limits.latency_target_s)
        self._free = not self._has_target and bool(self.tables.accurate.all())
        dwells = limits.dwell_s > 0.0 or limits.dwell_requests > 0
        self._dwells, self._only_bounds = dwells, self._free and not dwells
        bounds = zip(self.tables.low.tolist(), self.tables.high.tolist(), strict=True)
        self._bounds = tuple(bounds) * 2
        self._buckets = np.array(bank.buckets)
        self._batch, self._served = layout.index["batch"], layout.index["requests_served"]
        self._current = np.zeros((n, 2 * s + 1))
        self._direction = np.zeros((n, s))
        self._moved_s = np.zeros((n, s))
        self._moved_requests = np.zeros((n, s))
        self.reset()

    def _check_safe(self) -> None:
        row = self._safe_row
        if len(row) != len(self._low):
            raise ValueError(
                f"the safe plan has {len(self.safe.levels)} stages; the bank {self._stages}"
            )
        if (row < self._low).any() or (row > self._high).any():
            raise ValueError(
                f"the safe plan has levels {self.safe.levels} and {self.safe.escalate_levels}; "
                f"the guards allow {self.tables.low.tolist()} to {self.tables.high.tolist()}"
            )
        index = int(row[: self._stages] @ self._radix)
        if not self.tables.accurate[index]:
            raise ValueError(
                f"the safe plan has accuracy {self.bank.accuracy[index]:.4f}, below the floor "
                f"{self.limits.accuracy_floor}"
            )

    def _is_inside(self, plan: PrecisionPlan) -> bool:
        """Return whether a plan is within all levels' bounds."""
        inside = zip(plan.levels + plan.escalate_levels, self._bounds, strict=True)
        return all(low <= level <= high for level, (low, high) in inside)

    def reset(self, which: NDArray[np.int64] | slice = slice(None)) -> None:
        """Forget the past of some servers; the safe plan is in force."""
        self._current[which] = self._safe_row
        self._direction[which] = 0.0
        self._moved_s[which] = -np.inf
        self._moved_requests[which] = -np.inf

    def apply_rows(
        self, proposed: NDArray[np.float64], signals: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the plans to apply and why they differ from the proposals.

        Args:
            proposed: float64 [N, 2 * S + 1].
            signals: float64 [N, layout.size], what the decisions were based on.

        Returns:
            Plan rows float64 [N, 2 * S + 1] and causes int64 [N] (bits of `PrecisionCause`).
        """
        causes = np.zeros(len(proposed), dtype=np.int64)
        trusted, wanted = None, proposed
        if not (np.isfinite(proposed).all() and np.isfinite(signals).all()):
            usable = np.asarray(np.isfinite(proposed).all(axis=1))
            heard = np.asarray(np.isfinite(signals).all(axis=1))
            trusted = usable & heard
            wanted = np.where(trusted[:, None], proposed, self._safe_row)
            causes |= np.where(usable, 0, int(PrecisionCause.NON_FINITE))
            causes |= np.where(heard, 0, int(PrecisionCause.MISSING_SIGNAL))
        rows = np.rint(wanted)
        rows[:, self._stages] = wanted[:, self._stages]  # the margin
        np.maximum(rows, self._low, out=rows)
        np.minimum(rows, self._high, out=rows)
        moved = np.asarray(rows != wanted)
        if moved.any():
            causes |= np.where(moved.any(axis=1), int(PrecisionCause.BOUNDS), 0)
        bucket = None
        if not self._free:
            bucket = self._bucket_of(signals)
            self._hold_floors(rows, bucket, causes, trusted)
        if self._dwells:
            self._dwell(rows, signals, bucket, causes, trusted)
        if self._has_target and bucket is not None:
            self._drop_second_pass(rows, bucket, causes, trusted)
        self._current[:] = rows
        return rows, causes

    def permits(
        self, plans: NDArray[np.float64], signals: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which of M plans (float64 [M, 2 * S + 1]) hold all floors and targets now.

        Hysteresis is left out. Where none does, all are permitted: guards then decide.

        Returns:
            bool [N, M].
        """
        inside = np.asarray(((plans >= self._low) & (plans <= self._high)).all(axis=1))
        result = np.tile(inside, (len(signals), 1))
        if not self._free:
            bucket = self._bucket_of(signals)
            index = np.where(inside, self._index(plans), 0)
            result &= self.tables.allowed[index[None], bucket[:, None]]
            if self._has_target:
                usable = np.where(inside[:, None], plans, self._safe_row)
                result &= ~self._too_long(usable[None], bucket[:, None])
        result[~np.asarray(result.any(axis=1))] = True
        return result

    def masks(
        self,
        actions: ActionCodec,
        current: NDArray[np.float64],
        signals: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Return which actions hold the floors and targets now, bool [M, sum(nvec)].

        Of tables, those that guards would let pass (all where none would); of levels, those
        between each stage's floor and ceiling. M need not be the number of guarded servers.

        Args:
            actions: What is chosen from.
            current: float64 [M, 2 * S + 1], plans in force.
            signals: float64 [M, layout.size], what the decisions are based on.
        """
        masks = actions.masks(current)
        if isinstance(actions, TableActions):
            return masks & self.permits(actions.rows, signals)
        p = self.bank.n_levels
        for stage in range(self._stages):
            own = masks[:, stage * p : (stage + 1) * p]
            own &= (np.arange(p) >= self.tables.low[stage]) & (
                np.arange(p) <= self.tables.high[stage]
            )
        return masks

    def _index(self, rows: NDArray[np.float64], first: int = 0) -> NDArray[np.int64]:
        """Return the assignments in the columns from `first` on."""
        levels = rows[..., first : first + self._stages]
        return np.asarray(levels @ self._radix).astype(np.int64)

    def _bucket_of(self, signals: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bucket of each batch about to be dispatched; the largest if unknown."""
        place = np.searchsorted(self._buckets, signals[:, self._batch])
        return np.minimum(place, len(self._buckets) - 1)

    def _hold_floors(
        self,
        rows: NDArray[np.float64],
        bucket: NDArray[np.int64],
        causes: NDArray[np.int64],
        trusted: NDArray[np.bool_] | None,
    ) -> None:
        """Replace assignments that break floor or target, in place; add the causes."""
        index, tables = self._index(rows), self.tables
        broken = np.asarray(~tables.allowed[index, bucket])
        if trusted is not None:
            broken = broken & trusted
        if not broken.any():
            return
        at, b = index[broken], bucket[broken]
        replaced = tables.replacement[at, b]
        rows[broken, : self._stages] = replaced[:, None] // self._radix % self.bank.n_levels
        why = np.where(tables.accurate[at], 0, int(PrecisionCause.ACCURACY))
        why |= np.where(tables.in_time[at, b], 0, int(PrecisionCause.LATENCY))
        why |= np.where(tables.conflict[b], int(PrecisionCause.CONFLICT), 0)
        causes[broken] |= why

    def _dwell(
        self,
        rows: NDArray[np.float64],
        signals: NDArray[np.float64],
        bucket: NDArray[np.int64] | None,
        causes: NDArray[np.int64],
        trusted: NDArray[np.bool_] | None,
    ) -> None:
        """Undo moves that reverse a recent one, in place; add the cause."""
        s = self._stages
        current, levels = self._current[:, :s], rows[:, :s]
        step = np.sign(levels - current)
        time_s, served = signals[:, :1], signals[:, self._served, None]
        recent = time_s - self._moved_s < self.limits.dwell_s
        recent |= served - self._moved_requests < self.limits.dwell_requests
        reverses = (step * self._direction < 0.0) & recent
        if trusted is not None:
            reverses &= trusted[:, None]
        held = np.asarray(reverses.any(axis=1))
        if held.any():
            kept = np.where(reverses, current, levels)
            if bucket is not None:
                kept, held = self._stay_if_allowed(kept, levels, bucket, held)
            rows[:, :s] = np.where(held[:, None], kept, levels)
            causes |= np.where(held, int(PrecisionCause.DWELL), 0)
            step = np.sign(rows[:, :s] - current)
        moved = np.asarray(step != 0.0)
        if trusted is not None:
            self._direction[~trusted] = 0.0  # from the safe plan every way is free
            moved &= trusted[:, None]
        self._direction = np.where(moved, step, self._direction)
        self._moved_s = np.where(moved, time_s, self._moved_s)
        self._moved_requests = np.where(moved, served, self._moved_requests)

    def _stay_if_allowed(
        self,
        kept: NDArray[np.float64],
        levels: NDArray[np.float64],
        bucket: NDArray[np.int64],
        held: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return levels with reversals undone that hold floor and target, and where there are any.

        Where undoing some stages breaks them, all stages stay; where staying breaks them too, the
        move is forced.
        """
        allowed, current = self.tables.allowed, self._current[:, : self._stages]
        partly = allowed[self._index(kept), bucket]
        stay = allowed[self._index(current), bucket]
        result = np.where(partly[:, None], kept, np.where(stay[:, None], current, levels))
        return result, np.asarray(held & (partly | stay))

    def _too_long(self, rows: NDArray[np.float64], bucket: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return where a second pass of the whole batch would exceed the latency target."""
        s, latency_s = self._stages, self.bank.latency_s
        first, again = self._index(rows), self._index(rows, s + 1)
        both_s = latency_s[first, bucket] + latency_s[again, bucket]
        runs = (rows[..., s] > 0.0) & (first != again)
        return np.asarray(runs & (both_s > self.limits.latency_target_s))

    def _drop_second_pass(
        self,
        rows: NDArray[np.float64],
        bucket: NDArray[np.int64],
        causes: NDArray[np.int64],
        trusted: NDArray[np.bool_] | None,
    ) -> None:
        """Switch off second passes that could exceed the latency target, in place."""
        dropped = self._too_long(rows, bucket)
        if trusted is not None:
            dropped &= trusted
        rows[dropped, self._stages] = 0.0
        causes |= np.where(dropped, int(PrecisionCause.LATENCY), 0)

    def apply(
        self, proposed: PrecisionPlan, snapshot: PrecisionSnapshot
    ) -> tuple[PrecisionPlan, tuple[str, ...]]:
        """Return the plan to apply for one server and the names of the causes (needs N = 1)."""
        if self._only_bounds and self._is_inside(proposed) and np.isfinite(snapshot.signals).all():
            return proposed, ()  # what the lines below would say, many times faster
        rows, causes = self.apply_rows(proposed.to_row()[None], snapshot.signals[None])
        if causes[0] == 0:
            return proposed, ()
        names = tuple(cause.name.lower() for cause in PrecisionCause(int(causes[0])) if cause.name)
        return PrecisionPlan.from_row(rows[0], version=proposed.version), names
