"""What several workers observed as if it were one. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Final

from backstay.config.wire import PeerRow, PlaintextRow, Row, Sample, add_rows
from backstay.sidecar.engine import Observed

_GREATEST: Final = ("_info", "_share")
"""Gauges that say the same in each worker."""


def observed(found: Sequence[Observed]) -> Observed:
    """All increments, added up."""
    if len(found) == 1:
        return found[0]
    return Observed(
        rows=_added((row for each in found for row in each.rows), _row_key, add_rows),
        peers=_added((row for each in found for row in each.peers), _peer_key, _add_peers),
        serving=next((each.serving for each in found if each.serving), {}),
        open_requests=sum(each.open_requests for each in found),
        samples=_added((row for each in found for row in each.samples), _sample_key, _add_counts),
        plaintext=_added((row for each in found for row in each.plaintext), _plaintext_key, _add_counts),
        missing_keys=sorted({address for each in found for address in each.missing_keys}),
    )


def _added(rows: Iterable[Any], key: Callable[[Any], Any], add: Callable[[Any, Any], Any]) -> list[Any]:
    sums: dict[Any, Any] = {}
    for row in rows:
        name = key(row)
        sums[name] = add(sums[name], row) if name in sums else row
    return list(sums.values())


def _row_key(row: Row) -> tuple[str, ...]:
    return row.config, row.direction, row.route, row.backend


def _peer_key(row: PeerRow) -> tuple[str, ...]:
    return row.peer, row.config


def _add_peers(one: PeerRow, other: PeerRow) -> PeerRow:
    return PeerRow(one.peer, one.config, one.attempts + other.attempts, one.failures + other.failures)


def _numbers(row: Sample | PlaintextRow) -> list[str]:
    return [name for name in row.__struct_fields__ if type(getattr(row, name)) is int and name != "port"]


def _sample_key(row: Sample) -> tuple[Any, ...]:
    counted = _numbers(row)
    return tuple(getattr(row, name) for name in row.__struct_fields__ if name not in counted)


def _plaintext_key(row: PlaintextRow) -> tuple[Any, ...]:
    counted = _numbers(row)
    return tuple(getattr(row, name) for name in row.__struct_fields__ if name not in counted)


def _add_counts(one: Any, other: Any) -> Any:
    counted = _numbers(one)
    values = {name: getattr(one, name) for name in one.__struct_fields__}
    return type(one)(**values | {name: values[name] + getattr(other, name) for name in counted})


assert {field.name for field in fields(Observed)} == {  # noqa: S101 - a field that is not added up here would be lost
    "rows", "peers", "serving", "open_requests", "samples", "plaintext", "missing_keys",
}  # fmt: skip


# --- Prometheus text ----------------------------------------------------------------------------------------------


class Exposition:
    """Families of metrics by name, with their series in order."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self._series: dict[str, dict[str, tuple[float, str]]] = {}
        self._is_open = False

    def add(self, text: str, *, with_gauges: bool = True) -> None:
        """Add what one worker shows; the exemplars are the last one's."""
        family = ""
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, family, kind = line.split(" ", 3)
                if kind == "counter":
                    family = family.removesuffix("_total")
                self._kinds.setdefault(family, kind)
                self._series.setdefault(family, {})
            elif line == "# EOF":
                self._is_open = True
            elif line and not line.startswith("#") and (with_gauges or self._kinds[family] != "gauge"):
                self._add_line(family, line)

    def _add_line(self, family: str, line: str) -> None:
        sample, mark, exemplar = line.partition(" # ")
        series, _, value = sample.rpartition(" ")
        known, note = self._series[family].get(series, (0.0, ""))
        number = max(known, float(value)) if family.endswith(_GREATEST) else known + float(value)
        self._series[family][series] = (number, mark + exemplar if mark else note)

    def text(self) -> str:
        """Prometheus text; OpenMetrics if a worker's was."""
        lines = [line for family in self._series for line in self._family(family)]
        return "".join(f"{line}\n" for line in (*lines, *(("# EOF",) if self._is_open else ())))

    def _family(self, family: str) -> Iterable[str]:
        kind = self._kinds[family]
        yield f"# TYPE {family}{'_total' if kind == 'counter' and not self._is_open else ''} {kind}"
        for series, (number, note) in self._series[family].items():
            yield f"{series} {_shown(number)}{note}"


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(round(number, 6))
