from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from runtime.bundle_files import POLICY, WEIGHTS, env_of
from runtime.networks import Network, RecurrentNetwork
from runtime.precision.actions import LevelActions, TableActions
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.observation import PrecisionCodec, PrecisionScale
from runtime.precision.plan import PrecisionPlan, all_assignments
from runtime.precision.policy import ENV_ID, BundleError, PrecisionBundle, PrecisionBundlePolicy
from runtime.precision.serving import Serving
from runtime.precision.snapshot import PrecisionSnapshot

SCALE = PrecisionScale(2, 3, ("noise",), (0.0,), (1.0,), 0.1, 400.0, 4)
LEVELS = all_assignments(2, 3)
TABLES = BankTables(
    2,
    3,
    (1, 4),
    0.95 - 0.05 * LEVELS.sum(axis=1),
    (0.02 - 0.003 * LEVELS.sum(axis=1))[:, None] * np.array([1.0, 2.0]),
)
WIDTH = PrecisionCodec(SCALE).size
UNITS = 3
LISTED = TableActions({"fine": PrecisionPlan((0, 0)), "coarse": PrecisionPlan((2, 2))})

Content = dict[str, Any]
Tensors = dict[str, NDArray[Any]]
Policy = Network | RecurrentNetwork | PrecisionPlan


def perceptron(sizes: tuple[int, ...], seed: int = 0, activation: str = "relu") -> Network:
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in pairwise(sizes)
    ]
    return Network(tuple(layers), activation)


def recurrent() -> RecurrentNetwork:
    inside, bias = perceptron((WIDTH, 4 * UNITS), seed=2).layers[0]
    state, _ = perceptron((UNITS, 4 * UNITS), seed=3).layers[0]
    weight, _ = perceptron((UNITS, 6), seed=4).layers[0]
    head = Network(((weight, np.zeros(6, dtype=np.float32)),))
    return RecurrentNetwork(inside, state, bias, head)


POLICIES: dict[str, Policy] = {
    "perceptron": perceptron((WIDTH, 5, 6)),
    "recurrent": recurrent(),
    "constant": PrecisionPlan((2, 1), 0.3, (0, 0)),
}


def bundle(policy: Policy, **changes: Any) -> PrecisionBundle:
    parts: dict[str, Any] = {
        "name": "tested",
        "policy": policy,
        "stages": ("a", "b"),
        "levels": ("x", "y", "z"),
        "scale": SCALE,
        "actions": LevelActions(2, 3),
        "guards": PrecisionLimits(),
        "tables": TABLES,
        "safe": PrecisionPlan((1, 1)),
        "serving": Serving(0.1, 4),
        "provenance": {"seed": 3, "config": {"stream": "both"}},
    }
    return PrecisionBundle(**parts | changes)


def snapshots(n: int) -> list[PrecisionSnapshot]:
    layout = SCALE.signals
    rows = np.random.default_rng(7).uniform(0.0, 1.0, size=(n, layout.size))
    rows[:, :6] = np.cumsum(rows[:, :6], axis=0)
    rows[:, layout.index["batch"]] = 1 + np.arange(n) % 4
    rows[:, layout.plan_columns] = PrecisionPlan((1, 1)).to_row()
    return [PrecisionSnapshot(layout, row, PrecisionPlan((1, 1))) for row in rows]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("masked", [False, True])
def test_what_was_saved_is_loaded(tmp_path: Path, name: str, masked: bool) -> None:
    limits = PrecisionLimits(latency_target_s=0.05, coarsest=(2, 1))
    before = bundle(POLICIES[name], masked=masked, guards=limits)
    before.save(tmp_path / "b")
    assert env_of(tmp_path / "b") == ENV_ID
    after = PrecisionBundle.load(tmp_path / "b")
    equal = ("name", "stages", "levels", "scale", "actions", "guards", "safe", "serving")
    for field in (*equal, "masked", "provenance"):
        assert getattr(after, field) == getattr(before, field), field
    np.testing.assert_array_equal(after.tables.accuracy, TABLES.accuracy)
    np.testing.assert_array_equal(after.tables.latency_s, TABLES.latency_s)
    first, second = PrecisionBundlePolicy(before), PrecisionBundlePolicy(after)
    plans = [first.decide(snapshot) for snapshot in snapshots(50)]
    assert plans == [second.decide(snapshot) for snapshot in snapshots(50)]
    assert len(set(plans)) > 1 or name == "constant"
    second.reset()
    assert plans == [second.decide(snapshot) for snapshot in snapshots(50)], "it kept its past"


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        bundle(POLICIES["recurrent"]).save(tmp_path / name)
    for name in (POLICY, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_masks_take_away_what_guards_would_change() -> None:
    # The coarse table is preferred by its bias alone; only the fine one reaches the floor.
    bias = np.array([0.0, 1.0], dtype=np.float32)
    network = Network(((np.zeros((2, WIDTH), dtype=np.float32), bias),))
    floor = PrecisionLimits(accuracy_floor=0.9)
    parts = {"actions": LISTED, "guards": floor, "safe": PrecisionPlan((0, 0))}
    listed = bundle(network, **parts)
    snapshot = snapshots(1)[0]
    assert PrecisionBundlePolicy(listed).decide(snapshot) == PrecisionPlan((2, 2))
    masked = PrecisionBundlePolicy(replace(listed, masked=True))
    assert masked.decide(snapshot) == PrecisionPlan((0, 0))


def test_silent_monitors_keep_their_last_value() -> None:
    policy = PrecisionBundlePolicy(bundle(POLICIES["perceptron"]))
    first = snapshots(1)[0]
    before = policy.preferences(first)
    signals = first.signals.copy()
    signals[SCALE.signals.property_columns] = np.nan
    np.testing.assert_array_equal(policy.preferences(replace(first, signals=signals)), before)


def _rewrite(folder: Path, change: Callable[[Content, Tensors], None]) -> None:
    """Change a bundle and set its checksums right, as a careful forger would."""
    content = json.loads((folder / POLICY).read_text())
    loaded = load_tensors((folder / WEIGHTS).read_bytes())
    tensors = {name: array.copy() for name, array in loaded.items()}
    change(content, tensors)
    weights = save_tensors(tensors)
    content["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    rest = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / POLICY).write_text(json.dumps(content))


FORGERIES: dict[str, tuple[Callable[[Content, Tensors], Any], str]] = {
    "environment": (lambda c, t: c.update(env="rheostat/StreamCluster-v0"), "is for 'rheostat/St"),
    "kind": (lambda c, t: c.update(kind="tree"), "unknown kind 'tree'"),
    "activation": (lambda c, t: c["network"].update(activation="gelu"), "activation 'gelu'"),
    "no serving": (lambda c, t: c.pop("serving"), "serving"),
    "deadline": (lambda c, t: c["serving"].update(deadline_s=0), "deadline_s is 0"),
    "layout": (lambda c, t: c["observation"]["layout"].pop(), "another observation layout"),
    "stages": (lambda c, t: c["stages"].append("c"), r"\(3, 3\) by name"),
    "safe plan": (lambda c, t: c.update(safe_plan={"levels": [0]}), "has 1 stages; the bank 2"),
    "actions": (
        lambda c, t: c["actions"].update(n_stages=3, escalate_levels=[]),
        "make plans of 3 st",
    ),
    "cell": (lambda c, t: t.pop("lstm.bias"), "lstm.bias"),
    "cell shape": (
        lambda c, t: t.update({"lstm.bias": np.zeros(8, np.float32)}),
        r"lstm input_weight has shape \(12, \d+\); expected \(8",
    ),
    "nan": (lambda c, t: t["0.weight"].__setitem__((0, 0), np.nan), "layer 0 .* not finite"),
    "no tables": (lambda c, t: t.pop("tables.accuracy"), "tables.accuracy"),
    "tables": (
        lambda c, t: t["tables.latency_s"].__setitem__((0, 0), np.inf),
        "guard table latency_s",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_bundle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    change, message = FORGERIES[name]
    bundle(POLICIES["recurrent"]).save(tmp_path / "b")
    _rewrite(tmp_path / "b", lambda content, tensors: None)
    PrecisionBundle.load(tmp_path / "b")  # rewriting alone breaks nothing
    _rewrite(tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        PrecisionBundle.load(tmp_path / "b")


def test_a_plan_for_another_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="the plan has 3 stages; expected 2"):
        bundle(PrecisionPlan((0, 0, 0)))


def test_a_bundle_decides_without_torch(tmp_path: Path) -> None:
    bundle(POLICIES["recurrent"]).save(tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; import runtime.precision.policy as p; "
        "p.PrecisionBundlePolicy(p.PrecisionBundle.load(Path(sys.argv[1]))); "
        "print([m for m in ('torch', 'gymnasium') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "b")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
