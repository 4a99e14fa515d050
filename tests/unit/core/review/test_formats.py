"""Every output is safe for where it goes, whatever people put into names, paths and messages."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import click
import jsonschema
import pytest

from backstay.core.review import formats
from backstay.core.review.report import (
    AccessChange,
    Difference,
    DocumentChange,
    Remark,
    Replayed,
    ReplayedKind,
    Report,
    RequestChange,
    Rollout,
    Touched,
    as_object,
)

HOSTILE = (
    "</code></details><script>alert(1)</script> [x](http://evil.example) ![i](//e) @everyone #1 `a` | b | **b** "
    "www.evil.example \x1b[31mred\x1b[0m \u202egnp.exe\u2066 \r\n::error::fake\n## heading\x00 ]]> & \" ' % \\ \u2028"
)


def report(text: str = HOSTILE) -> Report:
    remark = Remark(severity="error", reason="GuardrailDenied", message=text, file=text, line=3, column=2)
    request = RequestChange(
        host=text,
        callers=(text,),
        requests=(text,),
        differences=(Difference(name=text, before=text, after=text),),
        before_place=f"{text}:1",
        after_place=f"{text}:2",
        example=text,
        doubt=text,
    )
    access = AccessChange(
        direction="gains",
        servers=(text,),
        ports=(80,),
        requests=(text,),
        before=text,
        after=text,
        before_place=text,
        after_place=text,
        example=text,
        doubt=text,
    )
    return Report(
        base=text,
        head=text,
        valid=False,
        problems=(remark,),
        guardrails=(remark,),
        documents=(DocumentChange(document=text, change="added", place=text),),
        requests=(request,),
        access=(access,),
        touched=(Touched(workload=text, proxies=1, parts=(text,)),),
        rollout=Rollout(strategy="Progressive", stages=(text,), waves=(5, 100), soak_seconds=30, least_seconds=60),
        plaintext=(text,),
        traffic=Replayed(
            span=text,
            requests=10,
            distinct=2,
            denied=3,
            admitted=0,
            changed=0,
            unknown=1,
            rules_ask_for_headers=2,
            kinds=(
                ReplayedKind(
                    fate="denied",
                    count=3,
                    before=text,
                    after=text,
                    before_place=text,
                    after_place=f"{text}:1",
                    examples=(text,),
                ),
            ),
        ),
        untouched=text,
        notes=(text,),
    )


def test_plain_text_moves_no_cursor_and_stays_on_its_line() -> None:
    shown = formats.plain(HOSTILE)
    assert shown.isprintable()
    assert "\\u{1b}[31mred" in shown
    assert "\\u{202e}gnp" in shown


@pytest.mark.parametrize("form", ["text", "markdown", "json", "yaml", "sarif", "github", "junit"])
def test_secrets_in_documents_are_in_no_output(form: str) -> None:
    from backstay.cli.review import written

    text = written(report("password=hunter2 and https://user:hunter3@git.example/x and ghp_" + "a" * 30), form)
    assert not re.search("hunter|ghp_a", text)


@pytest.mark.parametrize("form", ["text", "markdown", "json", "yaml", "sarif", "github", "junit"])
def test_no_output_moves_a_cursor_turns_text_or_begins_a_line_of_its_own(form: str) -> None:
    from backstay.cli.review import written

    lines = click.unstyle(written(report(), form)).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.lstrip().startswith(("::error::fake", "## heading")) for line in lines)


def test_markdown_has_only_our_own_markup() -> None:
    text = formats.as_markdown(report())
    tags = set(re.findall(r"</?[a-z!][^>]*>", text))
    assert tags == {
        "<!-- backstay-review -->",
        "<code>",
        "</code>",
        "<br>",
        "<details>",
        "</details>",
        "<summary>",
        "</summary>",
    }
    rest = re.sub(r"&#\d+;|<[^>]*>", "", text)
    assert not re.search(r"[\[\]`@\\]|www\.|\x1b|\u202e|https?:", rest)
    assert "#" not in rest.replace("### 🛑", "")
    assert [line.count("|") for line in text.splitlines() if line.startswith("|")] == [4] * 6


def test_markdown_of_a_huge_change_fits_into_a_comment() -> None:
    one = report("x" * 500)
    many = Report(base="a", head="b", valid=True, requests=one.requests * 500, access=one.access * 500)
    text = formats.as_markdown(many)
    assert len(text) < 65_536
    assert "The rest is left out" in text


def test_annotations_are_one_command_a_line() -> None:
    lines = formats.as_github(report()).split("\n")
    assert len(lines) == 4
    assert all(
        re.fullmatch(r"::(error|warning|notice) file=[^:,]*,(line=\d+,)?(col=\d+,)?title=[^:,]*::.*", x) for x in lines
    )
    assert all(line.isprintable() for line in lines)


def test_the_worst_annotations_come_first() -> None:
    kinds = [line.split(" ")[0] for line in formats.as_github(report()).split("\n")]
    assert kinds == ["::error", "::error", "::warning", "::notice"]


def test_sarif_has_no_links_of_others_and_relative_places() -> None:
    made = formats.as_sarif(report())
    results = made["runs"][0]["results"]
    assert len(results) == 4
    for result in results:
        assert not re.search(r"(?<!\\)[\[\]]", result["message"]["text"])
        assert re.fullmatch(
            r"[A-Za-z0-9%._~/-]+", result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        )
    jsonschema.validate(made, SARIF)


def test_junit_is_well_formed_and_fails_what_must_not_be_merged() -> None:
    tree = ET.fromstring(formats.as_junit(report()))  # noqa: S314 - our own output
    assert len(tree.findall(".//testcase")) == 3
    assert len(tree.findall(".//failure")) == 2


def test_json_is_ascii_when_written() -> None:
    from backstay.cli.review import written

    text = written(report(), "json")
    assert text.isascii()
    assert json.loads(text) == json.loads(json.dumps(as_object(report())))


def test_the_terminal_gets_nothing_but_our_own_colours() -> None:
    from backstay.cli.review import written

    text = click.unstyle(written(report(), "text"))
    assert "\x1b" not in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("form", ["text", "markdown", "json", "yaml", "sarif", "github", "junit"])
def test_a_change_of_nothing_can_be_written(form: str) -> None:
    from backstay.cli.review import written

    text = written(Report(base="a", head="b", valid=True), form)
    assert text == "" if form == "github" else text


SARIF = json.loads(Path(__file__).with_name("sarif-2.1.0.json").read_text())
"""The published schema."""
