"""Guardrails: who judges whom, what expressions see, and that the ready ones catch what they are for."""

import time
from pathlib import Path
from typing import Any

import pytest

from backstay.core.guardrails import MOST_FINDINGS, BadExpression, as_object, evaluate, judge, weight_step
from backstay.core.snapshot import Snapshot
from backstay.core.validate import validate
from support.policy import Json, document, snapshot

LIBRARY = Path(__file__).parents[3] / "example-repo" / "guardrails"
RETRY = {"backendRefs": [{"name": "web"}], "retry": {"attempts": 9}}
FEW = {
    "expression": "object.spec.rules.all(r, r.retry == null || r.retry.attempts <= 3)",
    "message": "too many retries",
}


def guardrail(*validations: Json, **spec: Any) -> Json:
    return document("Guardrail", "rule", {"validations": list(validations), **spec})


def route(*rules: Json, name: str = "web") -> Json:
    return document("Route", name, {"hosts": [name], "rules": list(rules)})


def said(live: list[Json], wanted: list[Json]) -> list[str]:
    return [str(item.problem()) for item in judge(snapshot(live), snapshot(wanted))]


def test_a_denial_names_the_document_and_the_condition() -> None:
    rule = guardrail(FEW)
    assert said([rule], [rule, route(RETRY)]) == [
        "01.yaml:1:1: too many retries (guardrail Guardrail/shop/rule, 00.yaml:10) [GuardrailDenied]"
    ]


def test_live_guardrails_judge_the_commit_that_takes_them_away() -> None:
    assert len(said([guardrail(FEW)], [route(RETRY)])) == 1
    assert said([], [guardrail(FEW), route(RETRY)]) == []


def test_what_runs_already_is_not_judged() -> None:
    rule = guardrail(FEW)
    assert said([rule, route(RETRY)], [rule, route(RETRY)]) == []


def test_nothing_is_judged_before_anything_is_live() -> None:
    assert judge(None, snapshot([guardrail(FEW), route(RETRY)])) == ()


def test_a_guardrail_may_be_about_guardrails() -> None:
    rule = guardrail({"expression": "operation != 'DELETE'"}, kinds=["Guardrail"], operations=["DELETE"])
    assert said([rule], [])[0].startswith("00.yaml:1:1: does not meet \"operation != 'DELETE'\"")


@pytest.mark.parametrize(("severity", "reason"), [("Warn", "GuardrailWarned"), ("Audit", "GuardrailAudited")])
def test_other_severities_are_only_said(severity: str, reason: str) -> None:
    rule = guardrail(FEW, severity=severity)
    (finding,) = judge(snapshot([rule]), snapshot([rule, route(RETRY)]))
    assert (finding.problem().reason, finding.problem().severity.value) == (reason, "warning")


def test_a_condition_that_cannot_be_evaluated_is_not_met() -> None:
    broken = {"expression": "object.spec.nothing == 1"}
    (text,) = said([guardrail(broken)], [guardrail(broken), route(RETRY)])
    assert 'a condition could not be evaluated: NOT_FOUND: Key not found in map : "nothing"' in text
    lenient = guardrail(broken, failurePolicy="Ignore")
    assert said([lenient], [lenient, route(RETRY)]) == []


def test_a_condition_must_be_true_or_false() -> None:
    number = {"expression": "object.spec.hosts.size()"}
    assert (
        "a condition gave 1, expected true or false" in said([guardrail(number)], [guardrail(number), route(RETRY)])[0]
    )


def test_a_hostile_expression_takes_no_time() -> None:
    begun = time.process_time()
    with pytest.raises(BadExpression, match="Iteration budget exceeded"):
        evaluate(
            "object.all(a, object.all(b, object.all(c, object.all(d, a + b + c + d >= 0))))", {"object": [*range(99)]}
        )
    with pytest.raises(BadExpression, match="recursion limit"):
        evaluate("(" * 300 + "1" + ")" * 300, {})
    assert evaluate("object.matches('(a+)+$')", {"object": "a" * 100_000 + "!"}) is False
    assert time.process_time() - begun < 5


def test_a_commit_of_many_faults_is_not_told_all_of_them() -> None:
    rule = guardrail(FEW)
    many = [route(RETRY, name=f"web-{number}") for number in range(MOST_FINDINGS + 10)]
    assert len(said([rule], [rule, *many])) == MOST_FINDINGS


@pytest.mark.parametrize("expression", ["object.spec.rules.all(r, ", "nobody.knows == 1", "1 + 1", "'a' + 1 == 2"])
def test_an_expression_that_is_none_makes_the_commit_invalid(expression: str) -> None:
    text = f"""
apiVersion: backstay.dev/v1alpha1
kind: Guardrail
metadata: {{name: bad}}
spec:
  validations:
  - expression: "{expression}"
"""
    result = validate({"bad.yaml": text.encode()}, revision="a")
    assert [(item.reason, item.line, item.path) for item in result.problems] == [
        ("GuardrailExpression", 7, "spec.validations[0].expression")
    ]


def test_objects_have_their_defaults() -> None:
    (made,) = snapshot([document("Authentication", "a", {})]).documents.values()
    found = as_object(made)
    assert found is not None
    assert found["spec"]["mtls"] == {"mode": "PERMISSIVE", "ports": []}
    assert found["metadata"]["annotations"] == {}


@pytest.mark.parametrize(
    ("before", "after", "step"),
    [((100, 0), (90, 10), 10.0), ((1, 1), (1, 3), 25.0), ((100, 0), (0, 100), 100.0), ((50, 50), (1, 1), 0.0)],
)
def test_the_step_of_weights(before: tuple[int, int], after: tuple[int, int], step: float) -> None:
    def made(weights: tuple[int, int]) -> Snapshot:
        refs = [{"name": "web", "subset": f"v{n}", "weight": w} for n, w in enumerate(weights)]
        return snapshot([route({"backendRefs": refs})])

    old, new = (next(iter(made(weights).documents.values())) for weights in (before, after))
    assert weight_step(old, new) == pytest.approx(step)


# --- the ready ones ---------------------------------------------------------------------------------------------------


def split(one: int, other: int) -> Json:
    return {
        "backendRefs": [
            {"name": "web", "subset": "v1", "weight": one},
            {"name": "web", "subset": "v2", "weight": other},
        ]
    }


def mtls(mode: str, **more: Any) -> Json:
    return document("Authentication", "all", {"mtls": {"mode": mode, **more}})


PLAIN = {"backendRefs": [{"name": "web"}]}
ONE = {"from": [{"serviceAccounts": ["client"]}]}


@pytest.mark.parametrize(
    ("name", "before", "bad", "good"),
    [
        (
            "no-allow-all",
            [],
            document("Authorization", "a", {"rules": [{}]}),
            document("Authorization", "a", {"rules": [ONE]}),
        ),
        (
            "no-allow-all",
            [],
            document("Authorization", "a", {"rules": [{"from": [{"principals": ["*"]}]}]}),
            document("Authorization", "a", {"action": "Deny", "rules": [{}]}),
        ),
        ("strict-stays", [mtls("STRICT")], mtls("PERMISSIVE"), mtls("STRICT", ports=[])),
        (
            "strict-stays",
            [mtls("STRICT")],
            mtls("STRICT", ports=[{"port": 80, "mode": "DISABLE"}]),
            mtls("STRICT", ports=[{"port": 80, "mode": "STRICT"}]),
        ),
        ("strict-stays", [mtls("STRICT")], None, mtls("STRICT", ports=[])),
        ("gentle-weights", [route(split(100, 0))], route(split(50, 50)), route(split(75, 25))),
        ("few-retries", [], route(RETRY), route(PLAIN)),
        ("few-retries", [], route({**PLAIN, "retry": {"attempts": 1, "anyMethod": True}}), route(PLAIN)),
        (
            "time-limits",
            [],
            route({**PLAIN, "timeouts": {"request": "0s"}}),
            route({**PLAIN, "timeouts": {"request": "9s"}}),
        ),
        ("time-limits", [], route({**PLAIN, "timeouts": {"request": "2m"}}), route(PLAIN)),
        ("no-faults", [], route({**PLAIN, "fault": {"abort": {"status": 500}}}), route(PLAIN)),
        (
            "immediate-needs-a-reason",
            [],
            document("Authentication", "all", {"rollout": {"strategy": "Immediate"}}),
            mtls("STRICT"),
        ),
    ],
)
def test_the_ready_guardrails_catch_what_they_are_for(
    name: str, before: list[Json], bad: Json | None, good: Json
) -> None:
    result = validate({f"{name}.yaml": (LIBRARY / f"{name}.yaml").read_bytes()}, revision="a")
    assert result.problems == ()
    rules = dict(result.snapshot.documents) if result.snapshot else {}

    def findings(wanted: list[Json]) -> int:
        live = Snapshot(revision="a", documents={**rules, **snapshot(before).documents})
        return len(judge(live, Snapshot(revision="b", documents={**rules, **snapshot(wanted).documents})))

    assert findings([bad] if bad else []) == 1
    assert findings([good]) == 0


def test_every_ready_guardrail_is_tried_and_listed() -> None:
    names = {path.stem for path in LIBRARY.glob("*.yaml")}
    listed = {name for name in names if f"| {name}.yaml |" in (LIBRARY / "README.md").read_text()}
    assert listed == names
