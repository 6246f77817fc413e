"""Claims: every figure that the README states, with where it comes from and what it aimed at.

`results/reference/claims.json` is written only by runs with `record=true`. The README's tables are
generated from it (`python -m experiments.claims`), so the two cannot disagree for long; a test
compares them. A missed aim stays in, with the reason.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.errors import REPOSITORY, ConfigError, did_you_mean
from experiments.files import file_sha256, write_json, write_text

REFERENCE = REPOSITORY / "results" / "reference"
CLAIMS = REFERENCE / "claims.json"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
NO_FIGURES = "No figures yet."

_ID = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_AIM = re.compile(r"(<=|>=|<|>) (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ClaimError(ConfigError):
    """A claim that is incomplete, contradicts itself or does not fit its source."""


def is_recorded(config: DictConfig) -> bool:
    """Return whether a command writes to results/reference: the key `record`.

    Raises:
        ConfigError: Recording is asked for at another size than paper.
    """
    if not config.record:
        return False
    if config.size.name != "paper":
        raise ConfigError(
            f"record=true with size={config.size.name}; results/reference is made with size=paper"
        )
    return True


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure.

    Attributes:
        id: Lower-case words joined by `.` or `-`, unique; it never changes its meaning.
        what: What was measured, in words that stand alone.
        value: The figure, finite.
        low: Lower end of its interval, or None where there is none.
        high: Upper end of its interval, or None where there is none.
        unit: Unit of the three, such as `%`, `s` or `env-steps/s`; empty for a pure number.
        aim: What was aimed at, as `>= 300000` (or `<=`, `<`, `>`) in the same unit, or None.
        met: Whether `value` meets `aim`; derived, None without an aim.
        why: Why the aim was missed; required then.
        command: What reproduces the figure, run in the repository.
        seeds: The seeds behind it; empty for a measurement without randomness.
        data: The traces or data sets behind it, or `synthetic`.
        machine: The machine that it was measured on.
        date: Day of the measurement, ISO 8601.
        source: The table behind it, relative to results/reference.
        source_sha256: SHA-256 of that table's bytes.
    """

    id: str
    what: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str
    aim: str | None = None
    met: bool | None = field(init=False)
    why: str = ""
    command: str
    seeds: tuple[int, ...] = ()
    data: str
    machine: str
    date: str
    source: str
    source_sha256: str

    def __post_init__(self) -> None:
        _check_text(self)
        _check_numbers(self)
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))
        object.__setattr__(self, "met", _meets(self))
        if self.met is False and not self.why.strip():
            raise ClaimError(
                f"claim {self.id!r} misses its aim ({self.value:g} is not {self.aim}) without a "
                "reason; say why"
            )


def load_claims(path: Path = CLAIMS) -> dict[str, Claim]:
    """Read claims.

    Args:
        path: A claims.json; an absent file holds no claims.

    Returns:
        The claims by id, in the file's order.

    Raises:
        ClaimError: If the file does not hold valid claims.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ClaimError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ClaimError(f"{path} holds a {type(rows).__name__}; expected a list of claims")
    claims = [_from_row(row) for row in rows]
    merged = {claim.id: claim for claim in claims}
    if len(merged) < len(claims):
        raise ClaimError(f"{path} holds two claims with one id")
    return merged


def record_claims(claims: Iterable[Claim], *, record: bool, reference: Path = REFERENCE) -> bool:
    """Check new claims against their sources and, where asked, write them.

    Args:
        claims: New claims; one with the id of an old claim replaces it.
        record: Whether to write. Without it everything is checked and nothing is written.
        reference: The folder with claims.json and the sources.

    Returns:
        Whether claims.json was written.

    Raises:
        ClaimError: If two new claims share an id, or a source is absent or has another hash.
    """
    new = list(claims)
    ids = [claim.id for claim in new]
    if len(set(ids)) < len(ids):
        twice = sorted({claim_id for claim_id in ids if ids.count(claim_id) > 1})
        raise ClaimError(f"two new claims have the id {twice[0]!r}")
    for claim in new:
        check_source(claim, reference)
    if not record:
        return False
    merged = load_claims(reference / CLAIMS.name) | {claim.id: claim for claim in new}
    # By id, so that the file's differences from run to run are those of its figures.
    write_json(reference / CLAIMS.name, [asdict(merged[claim_id]) for claim_id in sorted(merged)])
    return True


def check_source(claim: Claim, reference: Path = REFERENCE) -> None:
    """Refuse a claim whose table is absent or has changed since.

    Args:
        claim: The claim.
        reference: The folder that its source is relative to.

    Raises:
        ClaimError: Saying which.
    """
    source = reference / claim.source
    if not source.resolve().is_relative_to(reference.resolve()) or not source.is_file():
        raise ClaimError(f"claim {claim.id!r}: no file {claim.source!r} in {reference}")
    found = file_sha256(source)
    if found != claim.source_sha256:
        raise ClaimError(
            f"claim {claim.id!r}: {claim.source} has the SHA-256 {found[:12]}..., the claim says "
            f"{claim.source_sha256[:12]}...; run its command again: {claim.command}"
        )


def figures_table(claims: Iterable[Claim]) -> str:
    """Generate the README's tables: one for each command and machine, folded.

    Args:
        claims: In the order of the tables and of their rows.

    Returns:
        Markdown without a final line end; a sentence where there are no claims.
    """
    groups: dict[tuple[str, str, str], list[Claim]] = {}
    for claim in claims:
        groups.setdefault((claim.command, claim.data, claim.machine), []).append(claim)
    return "\n\n".join(map(_folded, groups.values())) if groups else NO_FIGURES


def _folded(claims: list[Claim]) -> str:
    """Return the table of claims that one command made on one machine, below a summary."""
    first = claims[0]
    aimed = [claim.met for claim in claims if claim.aim is not None]
    aims = f", {sum(map(bool, aimed))} of {len(aimed)} aims met" if aimed else ""
    header = ["what", "value", "95 % interval", "aim", "met", "seeds"]
    lines = [header, ["---"] * len(header), *map(_row, claims)]
    return "\n".join(
        [
            f"<details><summary><code>{escape(first.command, quote=False)}</code>: {first.data}; "
            f"{first.machine}. Figures: {len(claims)}{aims}.</summary>",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            "</details>",
        ]
    )


def replace_table(text: str, table: str) -> str:
    """Put the table between the two marker comments of a text.

    Args:
        text: A Markdown text with one pair of markers.
        table: What shall stand between them.

    Returns:
        The text with the table.

    Raises:
        ClaimError: If the markers are not there exactly once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ClaimError(f"expected one {BEGIN} and one {END} after it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def update_readme(readme: Path = README, claims: Path = CLAIMS) -> bool:
    """Write the table of the claims into the README.

    Args:
        readme: The file with the markers.
        claims: The claims.json.

    Returns:
        Whether the file changed.
    """
    text = readme.read_text(encoding="utf-8")
    wanted = replace_table(text, figures_table(load_claims(claims).values()))
    if wanted != text:
        write_text(readme, wanted)
    return wanted != text


def check_readme(readme: Path = README, claims: Path = CLAIMS) -> None:
    """Refuse a README whose table is not that of the claims, or claims that lost their source.

    Args:
        readme: The file with the markers.
        claims: The claims.json; its folder holds the sources.

    Raises:
        ClaimError: Naming the first line that differs, or the claim.
    """
    held = load_claims(claims)
    for claim in held.values():
        check_source(claim, claims.parent)
    text = readme.read_text(encoding="utf-8")
    wanted = replace_table(text, figures_table(held.values()))
    if wanted != text:
        present = set(text.splitlines())
        missing = [line for line in wanted.splitlines() if line not in present]
        first = missing[0] if missing else "a line too many"
        raise ClaimError(
            f"the table of {readme.name} is not that of {claims.name} ({first}); "
            "run: python -m experiments.claims"
        )


def format_number(value: float) -> str:
    """Write a number with at least three significant digits and no exponent in between.

    Args:
        value: A finite number.

    Returns:
        Such as `312,400`, `12.3`, `0.00512`; an exponent below 1e-4 and from 1e9 on.
    """
    size = abs(value)
    if size != 0 and not 1e-4 <= size < 1e9:
        return f"{value:.2e}"
    decimals = 2 if size == 0 else max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _row(claim: Claim) -> list[str]:
    unit = f" {claim.unit}" if claim.unit else ""
    interval = ""
    if claim.low is not None and claim.high is not None:
        interval = f"{format_number(claim.low)} to {format_number(claim.high)}"
    cells = [
        claim.what,
        f"{format_number(claim.value)}{unit}",
        interval,
        claim.aim or "",
        _verdict(claim),
        str(len(claim.seeds)) if claim.seeds else "",
    ]
    return [" ".join(cell.split()).replace("|", r"\|") for cell in cells]


def _from_row(row: Any) -> Claim:
    if not isinstance(row, dict):
        raise ClaimError(f"a claim is {row!r}; expected an object")
    known = {item.name: item for item in fields(Claim)}
    for name in row:
        if name not in known:
            raise ClaimError(f"claim has an unknown field {name!r}{did_you_mean(name, known)}")
    required = [item.name for item in known.values() if item.init and item.default is MISSING]
    if missing := sorted(set(required) - set(row)):
        raise ClaimError(f"claim {row.get('id')!r} lacks {', '.join(missing)}")
    claim = Claim(**{name: value for name, value in row.items() if name != "met"})
    if row.get("met") != claim.met:
        raise ClaimError(
            f"claim {claim.id!r} says met is {row.get('met')}, but {claim.value:g} against "
            f"{claim.aim} makes it {claim.met}"
        )
    return claim


def _meets(claim: Claim) -> bool | None:
    return None if claim.aim is None else _within(claim, claim.value)


def _within(claim: Claim, value: float) -> bool:
    """Return whether a value would meet the aim of a claim."""
    parsed = _AIM.fullmatch(str(claim.aim))
    if parsed is None:
        raise ClaimError(f"claim {claim.id!r} aims at {claim.aim!r}; expected such as '>= 300000'")
    bound = float(parsed[2])
    relations = {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}
    return relations[parsed[1]]


def _verdict(claim: Claim) -> str:
    """Say whether a claim meets its aim, and whether all of its interval does."""
    if claim.met is None:
        return ""
    if not claim.met:
        return f"no: {claim.why}"
    ends = [end for end in (claim.low, claim.high) if end is not None]
    return "yes" if all(_within(claim, end) for end in ends) else "by its value, not its interval"


def _check_text(claim: Claim) -> None:
    if not isinstance(claim.id, str) or not _ID.fullmatch(claim.id):
        raise ClaimError(f"claim id is {claim.id!r}; expected lower-case words joined by . or -")
    for name in ("what", "command", "data", "machine", "source"):
        text = getattr(claim, name)
        if not isinstance(text, str) or not text.strip():
            raise ClaimError(f"claim {claim.id!r}: {name} is {text!r}; expected a text")
    for name in ("unit", "why"):
        if not isinstance(getattr(claim, name), str):
            raise ClaimError(f"claim {claim.id!r}: {name} is not a text")
    try:
        date.fromisoformat(claim.date)
    except (TypeError, ValueError) as error:
        raise ClaimError(f"claim {claim.id!r}: date is {claim.date!r}; expected a day") from error
    if not isinstance(claim.source_sha256, str) or not _SHA256.fullmatch(claim.source_sha256):
        raise ClaimError(f"claim {claim.id!r}: source_sha256 is not 64 hexadecimal digits")


def _check_numbers(claim: Claim) -> None:
    for name in ("value", "low", "high"):
        number = getattr(claim, name)
        if number is None and name != "value":
            continue
        # float() so that a claim holds plain numbers and never numpy scalars.
        if isinstance(number, bool | str | None) or not math.isfinite(number):
            raise ClaimError(f"claim {claim.id!r}: {name} is {number!r}; expected a finite number")
        object.__setattr__(claim, name, float(number))
    if (claim.low is None) != (claim.high is None):
        raise ClaimError(f"claim {claim.id!r} has one end of an interval; expected both or none")
    if claim.low is not None and claim.high is not None and claim.low > claim.high:
        raise ClaimError(f"claim {claim.id!r}: low {claim.low:g} is above high {claim.high:g}")


def main() -> None:
    """Renew the table of the repository's README."""
    try:
        changed = update_readme()
    except ClaimError as error:
        print(f"rheostat: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print("README.md changed" if changed else "README.md is up to date")


if __name__ == "__main__":
    main()
