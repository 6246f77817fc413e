from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from runtime.cluster.actions import FieldActions
from runtime.cluster.observation import ClusterCodec, ObservationScale
from runtime.guards import GuardLimits
from runtime.plan import Plan, Policy, Pools
from runtime.policy import POLICY, WEIGHTS, Bundle, BundleError, BundlePolicy, Network
from runtime.snapshot import SIGNALS, Snapshot

SCALE = ObservationScale(
    slots=8,
    rate_per_s=400.0,
    period_s=2.0,
    max_open=32,
    parallelism=16,
    interval_s=10.0,
    idle_batches=4,
)
WIDTH = len(ClusterCodec(SCALE).layout)
ACTIONS = FieldActions(share=(0.2, 0.8), parallelism=(1, 8), interval_s=(0.25, 1.0))
HIDDEN = 5

Content = dict[str, Any]
Tensors = dict[str, NDArray[Any]]


def network(seed: int = 0) -> Network:
    """Return random layers WIDTH -> HIDDEN -> one preference per choice."""
    rng = np.random.default_rng(seed)
    sizes = (WIDTH, HIDDEN, sum(ACTIONS.nvec))
    return Network(
        tuple(
            (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32))
            for a, b in pairwise(sizes)
        )
    )


def bundle(policy: Network | Plan) -> Bundle:
    return Bundle(
        name="tested",
        policy=policy,
        scale=SCALE,
        actions=ACTIONS,
        guards=GuardLimits(degradation=float("inf")),
        safe=Plan(parallelism=4),
        period_s=2.0,
        provenance={"seed": 3, "config": {"workload": "steady"}},
    )


def snapshots(n: int) -> list[Snapshot]:
    rng = np.random.default_rng(7)
    rows = rng.uniform(0.0, 50.0, size=(n, len(SIGNALS)))
    rows[:, 0] = 2.0 * np.arange(n)
    rows[:, -len(Plan().to_row()) :] = Plan(parallelism=4).to_row()
    rows[:, 1] = np.cumsum(rows[:, 1])
    return [Snapshot(row) for row in rows]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    before = bundle(network())
    before.save(tmp_path / "b")
    after = Bundle.load(tmp_path / "b")
    for name in ("name", "scale", "actions", "guards", "safe", "period_s", "provenance"):
        assert getattr(after, name) == getattr(before, name), name
    assert isinstance(after.policy, Network)
    assert isinstance(before.policy, Network)
    for new, old in zip(after.policy.layers, before.policy.layers, strict=True):
        assert np.array_equal(new[0], old[0])
        assert np.array_equal(new[1], old[1])
    first, second = BundlePolicy(before), BundlePolicy(after)
    plans = [first.decide(snapshot) for snapshot in snapshots(50)]
    assert plans == [second.decide(snapshot) for snapshot in snapshots(50)]
    assert len(set(plans)) > 1, "a policy that always decides the same compares nothing"
    second.reset()
    assert plans == [second.decide(snapshot) for snapshot in snapshots(50)], "it kept its past"


def test_saving_twice_gives_the_same_bytes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        bundle(network()).save(tmp_path / name)
    for name in (POLICY, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [POLICY, WEIGHTS]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    bundle(network(seed=1)).save(tmp_path / "b")
    before = (tmp_path / "b" / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        bundle(network(seed=2)).save(tmp_path / "b")
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == before


def test_a_constant_plan_needs_no_network(tmp_path: Path) -> None:
    plan = Plan(pools=Pools.SOFT, share=0.8, parallelism=8, idle_batches=1, batch_interval_s=0.25)
    bundle(plan).save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert loaded.policy == plan
    assert [BundlePolicy(loaded).decide(snapshot) for snapshot in snapshots(3)] == [plan] * 3


def test_the_most_preferred_level_of_every_field_is_chosen() -> None:
    # Biases alone decide; the wanted choice of each field is the highest of its own, while the
    # highest of all would be another field's.
    wanted = (2, 1, 0, 1, 1, 0, 3)
    bias = np.concatenate(
        [
            10.0 * field + (np.arange(n) == choice)
            for field, (n, choice) in enumerate(zip(ACTIONS.nvec, wanted, strict=True))
        ]
    )
    weight = np.zeros((len(bias), WIDTH), dtype=np.float32)
    policy = BundlePolicy(bundle(Network(((weight, bias.astype(np.float32)),))))
    assert policy.decide(snapshots(1)[0]) == Plan(
        pools=Pools.SOFT,
        share=0.8,
        independent_policy=Policy.FIFO,
        dependent_policy=Policy.FAIR,
        parallelism=8,
        batch_interval_s=0.25,
        idle_batches=4,
    )


def _rewrite(folder: Path, change: Callable[[Content, Tensors], None]) -> None:
    """Change a bundle and set its checksums right, as a careful forger would."""
    content = json.loads((folder / POLICY).read_text())
    tensors = {
        name: array.copy() for name, array in load_tensors((folder / WEIGHTS).read_bytes()).items()
    }
    change(content, tensors)
    _sign(folder, content, save_tensors(tensors))


def _sign(folder: Path, content: Content, weights: bytes) -> None:
    """Write both files with the right checksums."""
    content["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    rest = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / POLICY).write_text(json.dumps(content))


FORGERIES: dict[str, tuple[Callable[[Content, Tensors], Any], str]] = {
    "version": (lambda c, t: c.update(format_version=99), "format version 99; this code reads 1"),
    "environment": (lambda c, t: c.update(env="other/Env-v0"), "is for 'other/Env-v0'"),
    "kind": (lambda c, t: c.update(kind="tree"), "unknown kind 'tree'"),
    "no guards": (lambda c, t: c.pop("guards"), "guards"),
    "unknown limit": (lambda c, t: c["guards"].update(speed=1), "not guard limits"),
    "impossible plan": (lambda c, t: c["safe_plan"].update(parallelism=0), "parallelism is 0"),
    "layout": (
        lambda c, t: c["observation"]["layout"][0].__setitem__(0, "moon_phase"),
        "another observation layout",
    ),
    "layout length": (lambda c, t: c["observation"]["layout"].pop(), "another observation layout"),
    "scale": (lambda c, t: c["observation"]["scale"].pop("slots"), "is not a usable bundle"),
    "actions": (lambda c, t: c["actions"].update(share=[0.5]), "outputs; its actions need"),
    "weight shape": (
        lambda c, t: t.update({"0.weight": np.zeros((HIDDEN, WIDTH + 1), np.float32)}),
        rf"layer 0 has weight \({HIDDEN}, {WIDTH + 1}\)",
    ),
    "bias shape": (
        lambda c, t: t.update({"1.bias": np.zeros(3, np.float32)}),
        r"layer 1 .* bias \(3,\)",
    ),
    "dimensions": (
        lambda c, t: t.update({"0.weight": np.zeros(WIDTH, np.float32)}),
        "layer 0 has weight",
    ),
    "nan": (lambda c, t: t["1.weight"].__setitem__((0, 0), np.nan), "layer 1 .* not finite"),
    "infinity": (lambda c, t: t["0.bias"].__setitem__(0, np.inf), "layer 0 .* not finite"),
    "missing layer": (lambda c, t: [t.pop(n) for n in ("0.weight", "0.bias")], "0.weight"),
    "no layers": (lambda c, t: t.clear(), "outputs; its actions need"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_bundle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    change, message = FORGERIES[name]
    bundle(network()).save(tmp_path / "b")
    _rewrite(tmp_path / "b", lambda content, tensors: None)
    Bundle.load(tmp_path / "b")  # rewriting alone breaks nothing
    _rewrite(tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize("name", [POLICY, WEIGHTS])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    bundle(network()).save(tmp_path / "b")
    path = tmp_path / "b" / name
    content = bytearray(path.read_bytes())
    if name == POLICY:
        content = bytearray(content.replace(b'"period_s": 2.0', b'"period_s": 3.0', 1))
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was changed after its export"):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize("name", [POLICY, WEIGHTS])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    bundle(network()).save(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(BundleError, match=f"is not a bundle: {name} is missing"):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", "\x80"])
def test_what_is_no_description_is_refused(tmp_path: Path, text: str) -> None:
    bundle(network()).save(tmp_path / "b")
    (tmp_path / "b" / POLICY).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match="is not a policy description"):
        Bundle.load(tmp_path / "b")


def test_cut_weights_with_the_right_checksum_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    bundle(network()).save(folder)
    content = json.loads((folder / POLICY).read_text())
    _sign(folder, content, (folder / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(BundleError, match="is not a usable bundle"):
        Bundle.load(folder)


def test_a_bundle_is_loaded_without_torch(tmp_path: Path) -> None:
    bundle(network()).save(tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from runtime.policy import Bundle, BundlePolicy; "
        "BundlePolicy(Bundle.load(Path(sys.argv[1]))); "
        "print([m for m in ('torch', 'numba', 'gymnasium') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
