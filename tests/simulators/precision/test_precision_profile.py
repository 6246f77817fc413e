from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.precision.plan import all_assignments
from simulators.precision.profile import PrecisionProfile, array_types
from simulators.precision.synthetic import SyntheticParameters, synthetic_profile
from tests.simulators.precision.banks import profiles, random_profile


@pytest.fixture(scope="module")
def profile() -> PrecisionProfile:
    return synthetic_profile(SyntheticParameters(samples=512))


@settings(max_examples=30, deadline=None)
@given(profiles(), st.data())
def test_latency_adds_up_and_the_table_has_the_same_bits(
    profile: PrecisionProfile, data: st.DataObject
) -> None:
    table = profile.latency_table_s()
    levels = all_assignments(len(profile.stages), len(profile.levels))
    index = data.draw(st.integers(0, len(levels) - 1))
    own = tuple(levels[index].tolist())
    for b, size in enumerate(profile.buckets):
        predicted = profile.predict_latency_s(own, size)
        assert predicted == table[index, b]
        parts = [profile.latency_s[b, k, level] for k, level in enumerate(own)]
        borders = [profile.transition_s[b, k, own[k], own[k + 1]] for k in range(len(own) - 1)]
        assert predicted == pytest.approx(profile.fixed_s[b] + sum(parts) + sum(borders))
    # A batch between two buckets is padded to the larger one.
    assert profile.predict_latency_s(own, 1) == table[index, 0]
    with pytest.raises(ValueError, match="do not fit the largest bucket"):
        profile.predict_latency_s(own, profile.buckets[-1] + 1)


def test_the_synthetic_bank_has_a_real_trade_off(profile: PrecisionProfile) -> None:
    accuracy = profile.accuracy()
    uniform = [accuracy[:, k * 85] for k in range(4)]  # fp32, bf16, int8, int8_half throughout
    times_s = [profile.predict_latency_s((k,) * 4, 16) for k in range(4)]
    assert times_s == sorted(times_s, reverse=True)
    assert times_s[0] > 5 * times_s[2]
    # On clean inputs int8 loses next to nothing, half width some points, on noisy ones many.
    assert uniform[0][0] - uniform[2][0] < 0.01
    assert 0.02 < uniform[0][0] - uniform[3][0] < 0.08
    assert uniform[0][-1] - uniform[3][-1] > 0.15
    # Noise shows in a property that an operator can measure.
    noise = profile.properties[:, :, profile.property_names.index("noise")].mean(axis=1)
    assert (np.diff(noise) > 0.03).all()
    assert profile.origin == "synthetic"


def test_names_and_figures(profile: PrecisionProfile) -> None:
    assert profile.assignment("int8") == (2, 2, 2, 2)
    assert profile.assignment("fp32", "int8", "bf16", "int8_half") == (0, 2, 1, 3)
    with pytest.raises(ValueError, match="unknown level 'int9'"):
        profile.assignment("int9")
    with pytest.raises(ValueError, match="3 levels are given; expected 1 or 4"):
        profile.assignment("int8", "int8", "int8")
    assert (profile.agreement()[:, 0] == 1.0).all()
    capacity = profile.capacity_per_s((0,) * 4, 16)
    assert capacity == max(b / profile.predict_latency_s((0,) * 4, b) for b in profile.buckets)


def test_held_out_samples_are_taken_out(profile: PrecisionProfile) -> None:
    chosen = np.arange(0, 512, 2)
    half = profile.take(chosen)
    assert half.n_samples == 256
    np.testing.assert_array_equal(half.label, profile.label[:, :, ::2])
    np.testing.assert_array_equal(half.properties, profile.properties[:, ::2])


def _same(one: PrecisionProfile, two: PrecisionProfile) -> None:
    for name in PrecisionProfile.__dataclass_fields__:
        left, right = getattr(one, name), getattr(two, name)
        if name in array_types(one):
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right, err_msg=name)
        else:
            assert left == right, name


def test_a_saved_profile_reads_back_equal(profile: PrecisionProfile, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bank.npz"
    profile.save(path)
    _same(PrecisionProfile.load(path), profile)
    content = path.read_bytes()
    profile.save(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["bank.npz"]
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("header.json"))["network"] == "synthetic"


def test_an_interrupted_write_leaves_the_old_file(
    profile: PrecisionProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank.npz"
    profile.save(path)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        replace(profile, network="other").save(path)
    monkeypatch.undo()
    assert PrecisionProfile.load(path).network == "synthetic"
    assert [file.name for file in tmp_path.iterdir()] == ["bank.npz"]


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.95])
def test_damaged_files_are_refused(tmp_path: Path, at: float) -> None:
    path = tmp_path / "bank.npz"
    random_profile(1).save(path)
    content = bytearray(path.read_bytes())
    for i in range(4):
        content[int(at * len(content)) + i] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bank\.npz is not a usable precision profile: ") as error:
        PrecisionProfile.load(path)
    assert "measure the network again" in str(error.value)


def test_cut_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    with pytest.raises(ValueError, match=r"bank\.npz is not a usable .*No such file"):
        PrecisionProfile.load(path)
    random_profile(1).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"bank\.npz is not a usable"):
        PrecisionProfile.load(path)


def _rewrite(path: Path, name: str, content: bytes | None) -> None:
    """Replace a member of the file, or take it out."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist() if n != name}
    if content is not None:
        members[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format_version is 99; expected 4"),
        ({"levels": "int8"}, "levels is 'int8'; expected a list of str"),
        ({"emulated": [0, 1, 0]}, "emulated is .*; expected a list of bool"),
        ({"buckets": [1.5]}, "buckets is .*; expected a list of int"),
        ({"buckets": [4, 2, 1, 8]}, "buckets is .*ascending"),
        ({"network": None}, "network is None; expected a str"),
        ({"power_idle_w": "high"}, "power_idle_w is 'high'; expected a float"),
        ({"power_idle_w": -1.0}, "power_idle_w is -1.0; expected finite watts"),
        ({"stages": ["a", "a", "b"]}, "stages is .*different names"),
        ({"conditions": ["clean"]}, r"label is uint8 \[3, 27, 20\]; expected uint8 \[1, 27, 20\]"),
    ],
)
def test_wrong_headers_name_the_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "bank.npz"
    random_profile(1).save(path)
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json")) | change
    _rewrite(path, "header.json", json.dumps(header).encode())
    with pytest.raises(ValueError, match=rf"bank\.npz is not a usable .*{message}"):
        PrecisionProfile.load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label.npy", None, "label is missing"),
        ("label.npy", b"no array", "label is no plain array"),
        ("header.json", None, "header.json is missing"),
        ("header.json", b"{", "header.json is no JSON"),
        ("header.json", b"[]", "header.json holds no mapping"),
    ],
)
def test_missing_and_foreign_members_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bank.npz"
    random_profile(1).save(path)
    _rewrite(path, name, content)
    with pytest.raises(ValueError, match=message):
        PrecisionProfile.load(path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    random_profile(1).save(path)
    array = tmp_path / "evil.npy"
    np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    _rewrite(path, "truth.npy", array.read_bytes())
    with pytest.raises(ValueError, match="truth is no plain array"):
        PrecisionProfile.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latency_s", math.nan, "latency_s holds nan; expected finite numbers >= 0"),
        ("latency_s", -1.0, "latency_s holds -1.0"),
        ("fixed_s", math.inf, "fixed_s holds inf"),
        ("transition_s", math.nan, "transition_s holds a number that is not finite"),
        ("transition_s", -1.0, "add up to .* a batch must take time"),
        ("clip_rate", 1.5, "clip_rate holds 1.5; expected shares up to 1"),
        ("residual", -0.1, "residual holds -0.1; expected finite numbers > 0"),
        ("residual", 0.0, "residual holds 0.0"),
        ("residual", math.nan, "residual holds nan"),
        ("residual", 1e9, "residual falls from one cell to the next"),
        ("properties", math.inf, "properties holds a number that is not finite"),
    ],
)
def test_impossible_values_are_refused(field: str, value: float, message: str) -> None:
    array = getattr(random_profile(1), field).copy()
    array.flat[0] = value
    with pytest.raises(ValueError, match=message):
        random_profile(1, **{field: array})


def test_too_many_assignments_and_too_large_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="the engine serves at most 64"):
        random_profile(1, buckets=(1, 128))
    with pytest.raises(ValueError, match="make 262144 assignments; at most 65536"):
        replace(
            random_profile(1),
            stages=tuple("abcdefghi"),
            levels=tuple("wxyz"),
            emulated=(False,) * 4,
        )
