"""How a rollout looks on a terminal: where it came from, its waves, each workload's share and cohorts, the sentence that
decides, and (where somebody counts them) the last seconds of traffic.

Pure: objects as the API shows them go in, rich renderables come out. The demo and `backstay rollout watch` draw the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from backstay.cli.output import BAR_WIDTH, bar, revision, share_of

Json: TypeAlias = Mapping[str, Any]

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ROOMY: Final = 110
"""Columns from which both cohorts, proxies and verdict fit beside names of twenty letters."""
NARROW: Final = 72
"""Columns below which only name, bar, share and the candidate's failures are shown."""
GOOD: Final = frozenset({"pass", "succeeded", "baking", "live"})
BAD: Final = frozenset({"fail", "failed", "rolling-back", "aborted"})
WAITING: Final = frozenset({"paused", "holding", "suspecting", "unknown"})


def picture(rollout: Json | None, seconds: Sequence[Json] = (), *, width: int = ROOMY) -> RenderableType:
    """Everything there is to see at one moment. Nothing at all is an empty picture."""
    parts: list[RenderableType] = []
    if rollout is not None:
        parts += [Text(), heading(rollout), waves(rollout["status"]), shares(rollout, width), *_sentence(rollout)]
    if seconds:
        parts += [Text(), traffic(seconds, width)]
    return Group(*parts)


def heading(rollout: Json) -> Text:
    """`r2  main@sha1:1a2b3c4d  sa-logic: a tenth to v2`"""
    status, cause = rollout["status"], rollout["spec"]["cause"]
    head = Text.assemble("  ", (status["id"], "bold"), "  ", (revision(cause["revision"]), "dim"))
    head.append(f"  {cause.get('subject', '')}")
    return _one_line(head)


def waves(status: Json) -> Text:
    """`●━━◉━━○━━○  shifting, wave 2 of 4, 3s in it`: waves that passed, the present one, those to come."""
    line = Text("  ")
    done = status["phase"] in ("succeeded", "baking")
    for number in range(1, status["waves"] + 1):
        mark, style = _mark(number, status, done=done)
        line.append("━━" if number > 1 else "", style="dim").append(mark, style=style)
    line.append(f"  {status['phase']}", style=style_of(status["phase"]))
    if status["phase"] not in (*GOOD, "failed", "aborted", "superseded"):
        line.append(f", wave {status['wave']} of {status['waves']}")
        line.append(f", {status['waveElapsed']} in it" if status.get("waveElapsed") else "")
    if status["stages"] > 1:
        line.append(f", stage {status['stageNumber']} of {status['stages']} ({status['stage']})")
    return _one_line(line)


def _mark(number: int, status: Json, *, done: bool) -> tuple[str, str]:
    if done or number < status["wave"]:
        return "●", "green"
    if number > status["wave"]:
        return "○", "dim"
    return ("✗", "bold red") if status["phase"] in BAD else ("◉", f"bold {style_of(status['phase'])}")


def shares(rollout: Json, width: int) -> Table:
    """One line per workload; cohorts go first when the terminal gets narrow, the candidate's failures last."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    columns = [("  WORKLOAD", "left"), ("", "left"), ("SHARE", "right")]
    columns += [("PROXIES", "right")] if width >= NARROW else []
    columns += [("CANDIDATE BAD", "left")]
    columns += [("STABLE BAD", "left"), ("VERDICT", "left")] if width >= ROOMY else []
    for title, side in columns:
        grid.add_column(title, justify="right" if side == "right" else "left", no_wrap=True, overflow="ellipsis")
    for workload in rollout["status"]["workloads"]:
        grid.add_row(*_row({**workload, "share": share_shown(rollout, workload)}, width))
    return grid


def share_shown(rollout: Json, workload: Json) -> float:
    """What of a workload runs the new config. Once it is live nobody has a seat any more, and everybody runs it."""
    return 100.0 if rollout["status"]["phase"] in ("baking", "succeeded") else float(workload.get("share", 0))


def _row(workload: Json, width: int) -> list[Text]:
    share, verdict = float(workload["share"]), str(workload["verdict"])
    cohorts, proxies = workload["cohorts"], workload["proxies"]
    bar_width = BAR_WIDTH if width >= NARROW else BAR_WIDTH // 2
    cells = [
        Text(f"  {workload['workload'].rpartition('/')[2]}"),
        Text(bar(share, bar_width), style=style_of(verdict)),
        Text(f"{share:.3g} %"),
    ]
    if width >= NARROW:
        cells.append(Text(f"{proxies['onCandidate']}/{proxies['total']}"))
    cells.append(_cohort(cohorts["candidate"]))
    if width >= ROOMY:
        cells += [_cohort(cohorts["stable"]), Text(verdict, style=style_of(verdict))]
    return cells


def _cohort(cohort: Json) -> Text:
    """`41/118 (34.7 %)`; red where anything failed, a dash where nothing was asked."""
    if not cohort["requests"]:
        return Text("-", style="dim")
    return Text(share_of(cohort["bad"], cohort["requests"]), style="red" if cohort["bad"] else "green")


def _sentence(rollout: Json) -> list[RenderableType]:
    said = rollout["status"].get("sentence", "")
    verdict, phase = rollout["status"]["verdict"], rollout["status"]["phase"]
    style = "bold red" if verdict == "fail" or phase in BAD else ""
    return [Padding(Text(said, style=style), (0, 0, 0, 2))] if said else []


def traffic(seconds: Sequence[Json], width: int = ROOMY) -> Text:
    """One column a second, as high as its requests, red where one failed; then what the newest second was."""
    room = max(width - 50, 10)
    shown = seconds[-room:]
    highest = max(sum(second["outcomes"].values()) for second in shown) or 1
    line = Text("  traffic  ")
    for second in shown:
        line.append(*_column(second, highest))
    failed = sum(map(failures, shown))
    line.append(f"  {sum(shown[-1]['outcomes'].values())}/s")
    line.append(f", {failed} failed" if failed else ", none failed", style="red" if failed else "green")
    return _one_line(line.append(f" in {len(shown)} s"))


def _column(second: Json, highest: int) -> tuple[str, str]:
    total = sum(second["outcomes"].values())
    height = round(total / highest * (len(BLOCKS) - 1))
    return BLOCKS[height] if total else " ", "red" if failures(second) else "green"


def failures(second: Json) -> int:
    """Requests of a second that did not end in 2xx."""
    return sum(count for outcome, count in second["outcomes"].items() if not outcome.startswith("2"))


def style_of(word: str) -> str:
    if word in GOOD:
        return "green"
    if word in BAD:
        return "red"
    return "yellow" if word in WAITING else "cyan"


def _one_line(text: Text) -> Text:
    """Cut at the edge instead of wrapped: a picture whose height changes with every number flickers."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
