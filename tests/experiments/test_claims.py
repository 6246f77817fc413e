from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.claims import (
    BEGIN,
    END,
    NO_FIGURES,
    Claim,
    ClaimError,
    check_readme,
    check_source,
    figures_table,
    format_number,
    load_claims,
    record_claims,
    replace_table,
    update_readme,
)
from experiments.files import file_sha256


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Make a folder of reference results with one table."""
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "speed.csv").write_text("x\n1\n", encoding="utf-8")
    return folder


@pytest.fixture
def facts(reference: Path) -> dict[str, Any]:
    return {
        "id": "engine.speed",
        "what": "batched engine | 256 envs",
        "value": 312_400.0,
        "low": 301_000.0,
        "high": 320_000.0,
        "unit": "env-steps/s",
        "aim": ">= 300000",
        "command": "make bench",
        "seeds": (0, 1),
        "data": "synthetic",
        "machine": "2 cores",
        "date": "2026-11-23",
        "source": "speed.csv",
        "source_sha256": file_sha256(reference / "speed.csv"),
    }


@pytest.mark.parametrize(
    ("value", "aim", "met"),
    [
        (3.0, ">= 3", True),
        (3.0, "> 3", False),
        (3.0, "<= 3.0", True),
        (3.0, "< 3e0", False),
        (-42.5, "<= -42", True),
        (-41.5, "<= -42", False),
        (3.0, None, None),
    ],
)
def test_met_follows_from_value_and_aim(
    facts: dict[str, Any], value: float, aim: str | None, met: bool | None
) -> None:
    claim = Claim(**facts | {"value": value, "aim": aim, "why": "because"})
    assert claim.met is met


def test_missed_aim_without_a_reason_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(ClaimError, match=r"misses its aim \(2 is not >= 300000\) without a reason"):
        Claim(**facts | {"value": 2.0, "low": None, "high": None, "why": " "})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "Engine speed"}, "claim id is"),
        ({"value": float("nan")}, "value is nan"),
        ({"value": None}, "value is None"),
        ({"value": "3"}, "value is '3'"),
        ({"low": None}, "one end of an interval"),
        ({"low": float("-inf")}, "low is -inf"),
        ({"low": 5.0, "high": 4.0}, "low 5 is above high 4"),
        ({"aim": "at least 3"}, "expected such as '>= 300000'"),
        ({"what": ""}, "what is ''"),
        ({"unit": None}, "unit is not a text"),
        ({"date": "23.11.2026"}, "expected a day"),
        ({"source_sha256": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_incomplete_claims_are_refused(
    facts: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClaimError, match=message):
        Claim(**facts | change)


def test_written_only_when_recording(facts: dict[str, Any], reference: Path) -> None:
    claim = Claim(**facts)
    assert record_claims([claim], record=False, reference=reference) is False
    assert not (reference / "claims.json").exists()
    assert record_claims([claim], record=True, reference=reference) is True
    assert load_claims(reference / "claims.json") == {claim.id: claim}


def test_every_field_is_written(facts: dict[str, Any], reference: Path) -> None:
    record_claims([Claim(**facts)], record=True, reference=reference)
    (row,) = json.loads((reference / "claims.json").read_text(encoding="utf-8"))
    names = "id what value low high unit aim met why command seeds data machine date source"
    assert list(row) == [*names.split(), "source_sha256"]
    assert row["met"] is True
    assert row["seeds"] == [0, 1]


def test_new_claims_replace_old_ones_and_keep_the_others(
    facts: dict[str, Any], reference: Path
) -> None:
    path = reference / "claims.json"
    first = [Claim(**facts | {"id": name}) for name in ("b", "a")]
    record_claims(first, record=True, reference=reference)
    record_claims(
        [Claim(**facts | {"id": "b", "value": 310_000.0})], record=True, reference=reference
    )
    held = load_claims(path)
    assert list(held) == ["a", "b"]
    assert [claim.value for claim in held.values()] == [312_400.0, 310_000.0]


def test_numpy_scalars_become_plain_numbers(facts: dict[str, Any], reference: Path) -> None:
    numpy_facts = {"value": np.float32(4e5), "seeds": np.arange(3)}
    record_claims([Claim(**facts | numpy_facts)], record=True, reference=reference)
    (claim,) = load_claims(reference / "claims.json").values()
    assert type(claim.value) is float
    assert claim.seeds == (0, 1, 2)


@pytest.mark.parametrize("record", [True, False])
def test_source_must_be_there_and_unchanged(
    facts: dict[str, Any], reference: Path, record: bool
) -> None:
    (reference / "speed.csv").write_text("x\n2\n", encoding="utf-8")
    with pytest.raises(ClaimError, match="run its command again: make bench"):
        record_claims([Claim(**facts)], record=record, reference=reference)
    (reference.parent / "outside.csv").touch()
    for source in ("absent.csv", "../outside.csv"):
        with pytest.raises(ClaimError, match="no file"):
            check_source(Claim(**facts | {"source": source}), reference)
    assert not (reference / "claims.json").exists()


def test_two_new_claims_with_one_id_are_refused(facts: dict[str, Any], reference: Path) -> None:
    with pytest.raises(ClaimError, match=r"two new claims have the id 'engine\.speed'"):
        record_claims([Claim(**facts)] * 2, record=True, reference=reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"met": False}, "says met is False"),
        ({"valu": 3}, "unknown field 'valu'; did you mean 'value'"),
        ({"command": None}, "command is None"),
    ],
)
def test_edited_claims_are_refused(
    facts: dict[str, Any], reference: Path, change: dict[str, Any], message: str
) -> None:
    path = reference / "claims.json"
    path.write_text(json.dumps([asdict(Claim(**facts)) | change]), encoding="utf-8")
    with pytest.raises(ClaimError, match=message):
        load_claims(path)


def test_damaged_files_are_refused(facts: dict[str, Any], reference: Path) -> None:
    path = reference / "claims.json"
    row = asdict(Claim(**facts))
    del row["unit"]
    damaged = {
        "{": "is not JSON",
        "{}": "expected a list",
        "[3]": "expected an object",
        json.dumps([row]): "lacks unit",
        json.dumps([asdict(Claim(**facts))] * 2): "two claims with one id",
    }
    for text, message in damaged.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ClaimError, match=message):
            load_claims(path)


def test_table_shows_figure_interval_aim_and_reason(facts: dict[str, Any]) -> None:
    missed = facts | {"value": 299_000.0, "low": 2.9e5, "high": 3.1e5, "why": "one core\nonly"}
    summary, header, rule, row = [
        line for line in figures_table([Claim(**missed)]).splitlines() if line
    ][:4]
    assert summary == (
        "<details><summary><code>make bench</code>: synthetic; " + facts["machine"] + ". "
        "Figures: 1, 0 of 1 aims met.</summary>"
    )
    assert header.count("|") == rule.count("|") == row.replace(r"\|", "").count("|")
    for cell in (
        r"batched engine \| 256 envs",
        "299,000 env-steps/s",
        "290,000 to 310,000",
        ">= 300000",
        "no: one core only",
    ):
        assert f"| {cell} |" in row


def test_table_says_where_an_interval_reaches_beyond_the_aim(facts: dict[str, Any]) -> None:
    whole = figures_table([Claim(**facts)])
    assert "| >= 300000 | yes |" in whole
    part = figures_table([Claim(**facts | {"low": 2.9e5})])
    assert "| >= 300000 | by its value, not its interval |" in part


def test_table_without_interval_aim_and_seeds(facts: dict[str, Any]) -> None:
    bare = {"low": None, "high": None, "aim": None, "seeds": ()}
    table = figures_table([Claim(**facts | bare)])
    assert "| 312,400 env-steps/s |  |  |  |  |" in table
    assert "Figures: 1.</summary>" in table
    assert figures_table([]) == NO_FIGURES


def test_there_is_a_table_for_each_command_and_machine(facts: dict[str, Any]) -> None:
    rows = [
        {"id": "a"},
        {"id": "b", "command": "make calibrate ARGS='bank.levels=[a&b]'"},
        {"id": "c"},
        {"id": "d", "machine": "another"},
    ]
    tables = figures_table([Claim(**facts | row) for row in rows]).split("\n\n<details>")
    assert [table.count("312,400") for table in tables] == [2, 1, 1]
    assert "<code>make calibrate ARGS='bank.levels=[a&amp;b]'</code>" in tables[1]


def test_readme_is_updated_and_disagreement_found(facts: dict[str, Any], reference: Path) -> None:
    readme, claims = reference.parent / "README.md", reference / "claims.json"
    readme.write_text(f"# Title\n\n{BEGIN}\nstale\n{END}\n\nrest\n", encoding="utf-8")
    record_claims([Claim(**facts)], record=True, reference=reference)
    with pytest.raises(ClaimError, match=r"the table of README\.md is not that of claims\.json"):
        check_readme(readme, claims)
    assert update_readme(readme, claims) is True
    check_readme(readme, claims)
    assert update_readme(readme, claims) is False
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nrest\n")
    readme.write_text(text.replace("312,400", "412,400"), encoding="utf-8")
    with pytest.raises(ClaimError, match="312,400"):
        check_readme(readme, claims)
    readme.write_text(text.replace(END, f"| extra |\n{END}"), encoding="utf-8")
    with pytest.raises(ClaimError, match="a line too many"):
        check_readme(readme, claims)


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_markers_must_be_there_once(text: str) -> None:
    with pytest.raises(ClaimError, match="expected one"):
        replace_table(text, "table")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (312_400.4, "312,400"),
        (12.34, "12.3"),
        (1.0, "1.00"),
        (0.005123, "0.00512"),
        (-42.26, "\N{MINUS SIGN}42.3"),
        (0.0, "0.00"),
        (2.5e-6, "2.50e-06"),
        (3e12, "3.00e+12"),
    ],
)
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text


@given(st.floats(min_value=-1e15, max_value=1e15, allow_subnormal=False))
def test_format_number_keeps_three_digits(value: float) -> None:
    shown = float(format_number(value).replace(",", "").replace("\N{MINUS SIGN}", "-"))
    assert abs(shown - value) <= 0.0051 * abs(value) + 1e-300


def test_the_readme_of_this_repository_agrees_with_its_claims() -> None:
    check_readme()
