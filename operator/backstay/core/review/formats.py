"""A review written down: Markdown, SARIF 2.1.0, GitHub annotations, JUnit. JSON is the report itself.

Everything in a report was written by somebody who may not be trusted: names, paths, messages, file names. Each format has
one function that makes a text safe for it, and every text goes through it. Rule: nothing is put into an output any other
way.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

import msgspec

from backstay.core.codes import code_of
from backstay.core.review.report import AccessChange, Remark, Replayed, ReplayedKind, Report, RequestChange, Severity
from backstay.redact import clean

MOST_LISTED: Final = 100
"""Classes of one kind in a Markdown report; forges cut comments off at 64 KiB, and nobody reads more."""
MOST_MARKDOWN: Final = 60_000  # characters; GitHub takes 65,536, Gitea and GitLab more
MARKER: Final = "<!-- backstay-review -->"
"""Hidden first line by which the one comment is found again."""
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ./-,=%;()?")
_WORST_FIRST: Final = {"error": 0, "warning": 1, "notice": 2}


# --- making texts safe ------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """One line for a terminal or a log: nothing that moves a cursor, changes a colour or turns the reading direction, and no
    secret that somebody wrote into a document."""
    return clean("".join(char if _is_visible(char) else f"\\u{{{ord(char):x}}}" for char in text))


def _is_visible(char: str) -> bool:
    """Letters, marks, numbers, punctuation, symbols and the blank; no controls, formats, separators, surrogates."""
    return char == " " or unicodedata.category(char)[0] in "LMNPS"


def markdown(text: str) -> str:
    """Text inside Markdown: whatever could be markup, a mention, a reference or a link becomes an entity."""
    shown = plain(text)
    risky = "www" in shown.lower()
    return "".join(
        char if char in _SAFE and not (risky and char == ".") else f"&#{ord(char)};" for char in shown
    ).strip() or "&#160;"  # fmt: skip


def sarif_text(text: str) -> str:
    """SARIF 3.11.6: brackets begin a link in a plain message."""
    shown = plain(text)
    return shown.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")


def github_text(text: str, also: str = "") -> str:
    """As GitHub's own toolkit escapes workflow commands: percent first, then what separates properties."""
    shown = plain(text)
    for char in "%\r\n" + also:
        shown = shown.replace(char, f"%{ord(char):02X}")
    return shown


# --- sentences --------------------------------------------------------------------------------------------------------


def request_sentences(change: RequestChange) -> Iterator[str]:
    """`POST under /analyse to sa-logic.shop:80 from shop/sa-webapp`, one for each way to say which requests."""
    callers = ", ".join(change.callers[:5]) + (
        f" and {len(change.callers) - 5} more" if len(change.callers) > 5 else ""
    )
    for words in change.requests or ("any request",):
        # What begins with a method reads as it is: `POST under /analyse to ...`.
        subject = words if words[:1].isupper() else f"requests {words}" if words else "every request"
        yield (
            f"{subject} from outside to {change.host} of {callers}"
            if change.from_outside
            else (f"{subject} to {change.host} from {callers}")
        )


def difference_texts(change: RequestChange) -> list[str]:
    """`timeout 15 s → 3 s`."""
    return [
        f"{'' if item.name == 'to' else item.name + ' '}{item.before or 'none'} → {item.after or 'none'}"
        for item in change.differences
    ]


def places(change: RequestChange | AccessChange) -> str:
    before, after = change.before_place or "no document", change.after_place or "no document"
    return before if before == after else f"{before} → {after}"


def access_sentences(change: AccessChange) -> Iterator[str]:
    servers = ", ".join(change.servers[:5]) + (
        f" and {len(change.servers) - 5} more" if len(change.servers) > 5 else ""
    )
    for words in change.requests or ("somebody",):
        yield f"{words}, at {servers} {' and '.join(_ports(change.ports))}"


def _ports(ports: Sequence[int]) -> Iterator[str]:
    named = [str(port) for port in ports if port]
    if named:
        yield f"port {', '.join(named)}"
    if 0 in ports:
        yield "any other port" if named else "ports that nobody names"


def summary(report: Report) -> str:
    """One line: is it valid, does it widen, how much does it move."""
    gains = sum(item.direction == "gains" for item in report.access)
    loses = sum(item.direction == "loses" for item in report.access)
    told = ["valid" if report.valid else "INVALID"]
    told.append(_counted(len(report.requests), "class of requests changes", "classes of requests change"))
    if gains:
        told.append(f"access is widened in {gains} way{'s' * (gains != 1)}")
    if loses:
        told.append(f"access is lost in {loses} way{'s' * (loses != 1)}")
    denied = sum(item.severity == "error" for item in report.guardrails)
    if denied:
        told.append(f"{denied} guardrail{'s' * (denied != 1)} forbid{'s' * (denied == 1)} it")
    if report.traffic is not None and report.traffic.denied:
        told.append(f"about {report.traffic.denied} requests of the last {report.traffic.span} would be denied")
    proxies = sum(item.proxies for item in report.touched)
    told.append(f"{_counted(len(report.touched), 'workload', 'workloads')}, {_counted(proxies, 'proxy', 'proxies')}")
    return ", ".join(told)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def remarks(report: Report) -> list[Remark]:
    """Problems, guardrails and widened access as remarks, worst first: a step in a forge shows only ten."""
    found = [*report.problems, *report.guardrails, *_access_remarks(report.access), *_request_remarks(report.requests)]
    return sorted(found, key=lambda item: _WORST_FIRST[item.severity])


def _access_remarks(changes: Sequence[AccessChange]) -> Iterator[Remark]:
    for change in changes:
        file, line = split_place(change.after_place or change.before_place)
        verb = {"gains": "gain access", "loses": "lose access"}.get(change.direction, "are refused otherwise")
        severity: Severity = "warning" if change.direction == "gains" else "notice"
        message = f"{'; '.join(access_sentences(change))}: these {verb}"
        reason = "AccessWidened" if change.direction == "gains" else "AccessNarrowed"
        yield Remark(severity=severity, reason=reason, message=message, file=file, line=line)


def _request_remarks(changes: Sequence[RequestChange]) -> Iterator[Remark]:
    for change in changes:
        file, line = split_place(change.after_place or change.before_place)
        message = f"{'; '.join(request_sentences(change))}: {', '.join(difference_texts(change))}"
        yield Remark(severity="notice", reason="OutcomeChanges", message=message, file=file, line=line)


def traffic_sentence(replayed: Replayed) -> str:
    """What the last hour's requests would have met, in one line."""
    told = (
        f"of about {replayed.requests} requests of the last {replayed.span} ({replayed.distinct} different) "
        f"{replayed.denied} would be denied, {replayed.admitted} admitted, {replayed.changed} otherwise changed"
    )
    if replayed.unknown:
        told += f"; {replayed.unknown} cannot be told"
    if replayed.rules_ask_for_headers:
        what = "headers, tokens or addresses, which samples do not have"
        told += f"; {replayed.rules_ask_for_headers} go to hosts whose rules ask for {what}"
    return told


def kind_places(kind: ReplayedKind) -> str:
    before, after = kind.before_place or "no document", kind.after_place or "no document"
    return before if before == after else f"{before} → {after}"


def split_place(place: str) -> tuple[str, int]:
    """File and line of `file:line`, the first of several."""
    first = place.partition(", ")[0]
    file, _, line = first.rpartition(":")
    return (file, int(line)) if line.isdigit() else (first, 0)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(report: Report) -> str:
    """One comment: the line that matters first, then what widens, then the rest, details folded."""
    text = "\n".join(_markdown_lines(report)) + "\n"
    if len(text) <= MOST_MARKDOWN:
        return text
    cut = text[:MOST_MARKDOWN].rpartition("\n")[0]
    return f"{cut}\n\n</details>\n\nThe rest is left out: a comment may not be longer. `backstay review` shows all of it.\n"


def _markdown_lines(report: Report) -> Iterator[str]:
    mark = "🛑" if report.denied else "⚠️" if report.widens or report.warned else "✅"
    yield MARKER
    yield f"### {mark} Backstay: {markdown(summary(report))}"
    yield f"{_code(report.base)} → {_code(report.head)}"
    yield from _remark_lines("Problems", report.problems)
    yield from _remark_lines("Guardrails", report.guardrails)
    yield from _access_lines(report.access)
    yield from _request_lines(report.requests)
    if report.plaintext:
        yield "\n**Plaintext callers seen that would be refused**\n"
        yield from (f"- {markdown(text)}" for text in report.plaintext[:MOST_LISTED])
    yield from _traffic_lines(report.traffic)
    yield from _rollout_lines(report)
    yield from (f"\n> {markdown(text)}" for text in report.notes)
    if report.untouched:
        yield f"\n{markdown(report.untouched)}."


def _code(text: str) -> str:
    return f"<code>{markdown(text)}</code>"


def _remark_lines(title: str, found: Sequence[Remark]) -> Iterator[str]:
    if not found:
        return
    yield f"\n**{title}**\n"
    for item in sorted(found, key=lambda one: _WORST_FIRST[one.severity])[:MOST_LISTED]:
        place = ":".join(str(part) for part in (item.file, item.line, item.column) if part)
        yield f"- {item.severity} {_code(place)} {markdown(item.message)} ({markdown(item.reason)})"
    yield from _more(len(found))


def _more(count: int) -> Iterator[str]:
    if count > MOST_LISTED:
        yield f"- and {count - MOST_LISTED} more"


def _access_lines(changes: Sequence[AccessChange]) -> Iterator[str]:
    titles = {"gains": "Gains access", "loses": "Loses access", "refused otherwise": "Refused in another way"}
    for direction, title in titles.items():
        found = [item for item in changes if item.direction == direction]
        if found:
            yield f"\n**{title}**\n"
        for item in found[:MOST_LISTED]:
            for sentence in access_sentences(item):
                yield f"- {markdown(sentence)}  \n  {markdown(item.before)} → {markdown(item.after)}, {_code(places(item))}"
            yield from _doubt(item.doubt)
        yield from _more(len(found))


def _doubt(text: str) -> Iterator[str]:
    if text:
        yield f"  *not proven: {markdown(text)}*"


def _request_lines(changes: Sequence[RequestChange]) -> Iterator[str]:
    if not changes:
        return
    yield "\n**Requests whose outcome changes**\n"
    yield "| requests | outcome | line |"
    yield "|---|---|---|"
    for item in changes[:MOST_LISTED]:
        which = "<br>".join(map(markdown, request_sentences(item)))
        doubt = f"<br>not proven: {markdown(item.doubt)}" if item.doubt else ""
        what = "<br>".join(map(markdown, difference_texts(item)))
        yield f"| {which}{doubt} | {what} | {_code(places(item))} |"
    if len(changes) > MOST_LISTED:
        yield f"\nand {len(changes) - MOST_LISTED} more classes"


def _traffic_lines(replayed: Replayed | None) -> Iterator[str]:
    if replayed is None or not replayed.requests:
        return
    yield "\n**Live traffic**\n"
    yield f"{markdown(traffic_sentence(replayed))}."
    if replayed.kinds:
        yield "\n| requests | outcome | line |"
        yield "|---|---|---|"
    for kind in replayed.kinds[:MOST_LISTED]:
        which = "<br>".join((f"{kind.count} {kind.fate}", *map(markdown, kind.examples)))
        yield f"| {which} | {markdown(kind.before)} → {markdown(kind.after)} | {_code(kind_places(kind))} |"
    if len(replayed.kinds) > MOST_LISTED:
        yield f"\nand {len(replayed.kinds) - MOST_LISTED} more kinds"


def _rollout_lines(report: Report) -> Iterator[str]:
    yield "\n<details><summary>Rollout, workloads and documents</summary>\n"
    yield markdown(rollout_sentence(report))
    yield ""
    for touched in report.touched[:MOST_LISTED]:
        parts = ", ".join(touched.parts[:5]) + (" ..." if len(touched.parts) > 5 else "")
        yield f"- {_code(touched.workload)} ({_counted(touched.proxies, 'proxy', 'proxies')}): {markdown(parts)}"
    yield from _more(len(report.touched))
    for document in report.documents[:MOST_LISTED]:
        yield f"- {document.change} {_code(document.document)} {_code(document.place)}"
    yield from _more(len(report.documents))
    yield "\n</details>"


def rollout_sentence(report: Report) -> str:
    rollout = report.rollout
    if rollout.strategy == "None":
        return "no proxy's config changes: live at once"
    if rollout.strategy == "Immediate":
        return "everyone at once (Immediate)"
    waves = ", ".join(f"{share:g} %" for share in rollout.waves)
    stages = ", then ".join(rollout.stages)
    return f"waves of {waves} ({stages}), at least {rollout.least_seconds:g} s in all"


# --- SARIF, GitHub, JUnit ---------------------------------------------------------------------------------------------

_LEVELS: Final = {"error": "error", "warning": "warning", "notice": "note"}


def as_sarif(report: Report, folder: str = "") -> dict[str, Any]:
    """`folder` is that of the documents within the repository (`mesh/`): forges know files by their place in there."""
    found = located(remarks(report), folder)
    rules = sorted({item.reason for item in found})
    driver = {
        "name": "backstay",
        "informationUri": "https://backstay.dev",
        "rules": [{"id": code_of(reason) or reason, "name": reason} for reason in rules],
    }
    return {
        "version": "2.1.0",
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "runs": [{"tool": {"driver": driver}, "results": [_sarif_result(item) for item in found]}],
    }


def _sarif_result(item: Remark) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": code_of(item.reason) or item.reason,
        "level": _LEVELS[item.severity],
        "message": {"text": sarif_text(item.message)},
    }
    if item.file:
        region = {"startLine": max(item.line, 1), "startColumn": max(item.column, 1)}
        place = {"artifactLocation": {"uri": _uri(item.file)}, "region": region}
        result["locations"] = [{"physicalLocation": place}]
    return result


def _uri(file: str) -> str:
    """A relative URI: what is neither letter, digit nor a plain sign is written in percent."""
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/"
    return "".join(
        chr(byte) if byte in safe else f"%{byte:02X}" for byte in clean(file).encode("utf-8", "surrogateescape")
    )


def as_github(report: Report, folder: str = "") -> str:
    """Workflow commands, worst first; `folder` as for SARIF."""
    return "\n".join(map(_github_line, located(remarks(report), folder)))


def located(found: Iterable[Remark], folder: str) -> list[Remark]:
    """Files as the repository has them, where the documents lie in a folder of it."""
    return [
        msgspec.structs.replace(item, file=f"{folder}{item.file}") if item.file and folder else item for item in found
    ]


def _github_line(item: Remark) -> str:
    fields = {"file": item.file, "line": item.line, "col": item.column, "title": _label(item.reason)}
    told = ",".join(f"{key}={github_text(str(value), ',:')}" for key, value in fields.items() if value)
    return f"::{item.severity} {told}::{github_text(item.message)}"


def _label(reason: str) -> str:
    return f"{code_of(reason)} {reason}".strip()


def as_junit(report: Report) -> str:
    """One case for the documents, each guardrail finding and each widened access; what must not be merged fails."""
    failures = [item for item in (*report.problems, *report.guardrails) if item.severity == "error"]
    cases = list(_cases("problems", report.problems)) + list(_cases("guardrails", report.guardrails))
    cases += [f'    <testcase classname="access" name={_attribute(text)}/>' for text in _access_names(report.access)]
    cases = cases or ['    <testcase classname="review" name="valid"/>']
    head = f'  <testsuite name="backstay review" tests="{len(cases)}" failures="{len(failures)}" errors="0">'
    return "\n".join(
        ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", head, *cases, "  </testsuite>", "</testsuites>"]
    )


def _cases(name: str, found: Iterable[Remark]) -> Iterator[str]:
    for item in found:
        place = ":".join(str(part) for part in (item.file, item.line) if part)
        opened = f"    <testcase classname={_attribute(name)} name={_attribute(f'{place} {_label(item.reason)}')}"
        if item.severity == "error":
            yield f"{opened}><failure message={_attribute(item.message)}>{escape(plain(item.message))}</failure></testcase>"
        else:
            yield f"{opened}><system-out>{escape(plain(item.message))}</system-out></testcase>"


def _access_names(changes: Iterable[AccessChange]) -> Iterator[str]:
    for change in changes:
        yield f"{change.direction}: {'; '.join(access_sentences(change))}"


def _attribute(text: str) -> str:
    return quoteattr(plain(text))
