"""Alerts and board: what Prometheus itself thinks of them, and whether the metrics they name exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "bootstrap" / "monitoring"
TESTED = Path(__file__).with_name("alerts.test.yaml")


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    return found


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The spec of the PrometheusRule, which is a rules file."""
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(spec()), encoding="utf-8")
    return file


def spec() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["spec"]
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in spec()["groups"] for rule in group["rules"]]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules(promtool: str, rules: Path) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in run(promtool, "check", "rules", str(rules))


def test_alerts_fire_when_they_should_and_not_before(promtool: str, rules: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(TESTED.read_text(encoding="utf-8").replace("{rules}", str(rules)), encoding="utf-8")
    assert "SUCCESS" in run(promtool, "test", "rules", str(cases))


def queries() -> Iterator[str]:
    """Every PromQL expression of the board, as a data source would get it."""
    board = json.loads((MONITORING / "backstay.json").read_text(encoding="utf-8"))
    texts = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    texts += [each["expr"] for each in board["annotations"]["list"]]
    for text in texts:
        yield text.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$workload", ".*")


def test_prometheus_takes_the_boards_queries(promtool: str, tmp_path: Path) -> None:
    recorded = [{"record": f"board:query:{number}", "expr": text} for number, text in enumerate(queries())]
    assert recorded
    file = tmp_path / "board.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": recorded}]}), encoding="utf-8")
    assert f"SUCCESS: {len(recorded)} rules found" in run(promtool, "check", "rules", "--lint=none", str(file))


def exposed() -> set[str]:
    """Names of all metrics, as the sources of operator and sidecar spell them."""
    source = ROOT / "operator" / "backstay"
    text = "\n".join(path.read_text(encoding="utf-8") for path in source.rglob("*.py"))
    names = set(re.findall(r"\b((?:backstay|istio)_[a-z_]+[a-z])\b", text))
    # agent_metrics writes a prefix once; prometheus_client appends `_total` to what it counts.
    names |= {f"backstay_sidecar_{name}" for name in re.findall(r'\("([a-z_]+)", "(?:gauge|counter)"', text)}
    return names


def named_by(expressions: Iterator[str] | list[str]) -> set[str]:
    found = set(re.findall(r"\b((?:backstay|istio)_[a-z_]+)\b(?!\")", "\n".join(expressions)))
    return {name.removesuffix("_bucket") for name in found}


def test_alerts_and_board_name_metrics_that_exist() -> None:
    wanted = named_by([rule["expr"] for rule in alerts()]) | named_by(queries())
    assert len(wanted) > 15
    assert wanted - exposed() == set()


def test_every_alert_says_what_to_do() -> None:
    assert {rule["labels"]["severity"] for rule in alerts()} <= {"critical", "warning", "info"}
    lacking = [rule["alert"] for rule in alerts() if set(rule["annotations"]) != {"summary", "description", "action"}]
    assert lacking == []


def test_every_alert_but_the_slow_ones_is_tried() -> None:
    """Those that wait for a day repeat a pattern that others prove."""
    tried = set(re.findall(r"alertname: (\w+)", TESTED.read_text(encoding="utf-8")))
    assert {rule["alert"] for rule in alerts()} - tried == {"BackstaySuspended", "BackstayRolloutPaused"}
