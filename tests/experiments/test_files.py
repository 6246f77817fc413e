from __future__ import annotations

import gzip
import json
import stat
from enum import Enum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from experiments.files import (
    atomic_path,
    file_sha256,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)


class Colour(Enum):
    RED = 1


def test_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.csv"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(path.parent.iterdir()) == [path]


def test_nothing_under_the_final_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.touch()
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        assert not path.exists()
    assert path.exists()


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.touch()
    write_text(ours, "")
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_json_of_numpy_enum_and_path(tmp_path: Path) -> None:
    value = {
        "b": np.float32(0.5),
        "a": np.arange(2),
        "flag": np.bool_(True),
        "path": Path("x/y"),
        "colour": Colour.RED,
        "text": "µ",
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    expected = {"b": 0.5, "a": [0, 1], "flag": True, "path": "x/y", "colour": "RED", "text": "µ"}
    assert json.loads(text) == expected
    assert list(json.loads(text)) == list(expected)


@pytest.mark.parametrize("value", [float("nan"), np.array([np.inf]), [float("-inf")]])
def test_json_refuses_what_is_not_finite(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_unknown_types(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot write .* \(set\) as JSON"):
        write_json(tmp_path / "a.json", {"x": {1}})


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(mapping=st.dictionaries(st.sampled_from("abcd"), YAML_VALUES, max_size=4))
def test_yaml_reads_back_equal(tmp_path: Path, mapping: dict[str, object]) -> None:
    write_yaml(tmp_path / "a.yaml", mapping)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "a.yaml")) == mapping


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_reads_back_bit_identical(tmp_path: Path, name: str) -> None:
    floats = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    table = pd.DataFrame({"agent": "ppo", "latency_s": floats})
    write_csv(tmp_path / name, table)
    back = pd.read_csv(tmp_path / name)
    assert list(back.columns) == ["agent", "latency_s"]
    assert np.array_equal(back["latency_s"].to_numpy(), floats)


def test_compressed_bytes_depend_on_the_table_alone(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1, 2]})
    write_csv(tmp_path / "a.csv.gz", table)
    write_csv(tmp_path / "b.csv.gz", table)
    assert file_sha256(tmp_path / "a.csv.gz") == file_sha256(tmp_path / "b.csv.gz")
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == b"x\n1\n2\n"


def test_sha256_of_known_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    )
