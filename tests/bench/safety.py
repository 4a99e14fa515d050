"""`make bench-safety`: a zoo of commits pushed to one running mesh under steady traffic, one after the other.

First the good ones, then the bad ones as the product rolls them out, then the bad ones "everywhere": the same documents with
strategy Immediate and onFail pause, and paused, which is what a push without a rollout does. Those are left for a few
seconds, and what they harm between the first and the last harmed request is scaled to EVERYWHERE_S. A request is harmed if
it failed at its client or took longer than SLOW_MS (see support/zoo.py); requests that hang are waited for. After each
commit the base comes back, and the next begins when traffic has been well for two seconds.

bad, rolled_back          commits that must not stay, and those taken back without a person
good, good_live           commits that must stay, and those live without a person
false_rollbacks           good ones that were taken back
harmed_ratio_median       harmed under the rollout / harmed everywhere, median over bad ones
harmed_median             harmed requests of a bad one, median
detect_s_median           seconds from the candidate's first request to the verdict, by the operator, median
restore_s_max_catastrophe seconds from the first to the last harmed request at the client, greatest of the catastrophes

Cases: `safety.py NAME...` takes only those. QUICK=1 takes six bad and four good. The last line is one JSON object; full
runs keep it in docs/benchmarks/.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backstay.cli.exits import Failed
from backstay.core.durations import seconds as spelled
from bench.support import results, zoo
from bench.support.results import QUICK, finish, say
from bench.support.zoo import Case
from support.live import ENDED, UNDERWAY, LiveMesh, NotSo, failures

EVERYWHERE_S: Final = 60.0
"""How long a bad change stays when people have to notice and revert it; a quick team's minute."""
BAD_WITHIN: Final = 60.0
GOOD_WITHIN: Final = 150.0
"""Seconds for a commit to come to rest; four waves of at most the deadline each would be 80."""
HANGS_S: Final = 6.0
"""The mesh's timeout, and a second for it to be told."""
OPEN_USUALLY: Final = 3
"""Requests of the busiest client under way at a time, at 120 a second and 20 ms each."""
QUICK_CASES: Final = (
    "dead-subset", "abort-7-percent", "delay-for-all", "deny-all", "mtls-mode-clash", "single-instance-fault",
    "shorter-timeout", "half-to-v2", "strict-mtls", "comment-only",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one case."""

    name: str
    kind: str
    state: str
    sentence: str
    harmed: int
    everywhere: float = 0.0
    """Harmed in EVERYWHERE_S seconds when applied everywhere."""
    detect_s: float = 0.0
    restore_s: float = 0.0
    """First to last harmed request at the client."""
    took_s: float = 0.0

    @property
    def ratio(self) -> float:
        return self.harmed / self.everywhere if self.everywhere else 0.0


# --- counting at the client -------------------------------------------------------------------------------------------


def harmed_since(mesh: LiveMesh, mark: int, client: str) -> int:
    return sum(failures(line) + line["slow"] for line in mesh.client_lines(client)[mark:])


def harmed_span(mesh: LiveMesh, mark: int, client: str) -> float:
    """Seconds between the first and the last harmed request."""
    spans = [line["harmed_at"] for line in mesh.client_lines(client)[mark:] if line["harmed_at"]]
    return round(spans[-1][1] - spans[0][0], 3) if spans else 0.0


def settle(mesh: LiveMesh, client: str) -> None:
    """Until requests have been well for two seconds and none is left that hangs: it is harmed when it ends."""

    def calm() -> bool:
        lines = mesh.client_lines(client)[-2:]
        return all(failures(line) + line["slow"] == 0 and line["open"] <= 0.1 * max(line["sent"], 1) for line in lines)

    mesh.until(calm, f"{client} to be well again", 60)
    end = time.monotonic() + HANGS_S
    while mesh.client_lines(client)[-1]["open"] > OPEN_USUALLY and time.monotonic() < end:
        time.sleep(0.2)


# --- one case ---------------------------------------------------------------------------------------------------------


class Trial:
    """Pushes one case after the other to a running mesh."""

    def __init__(self, mesh: LiveMesh) -> None:
        self._mesh = mesh
        self._base = zoo.base()

    def roll_out(self, case: Case) -> Result:
        """What becomes of the case as the product rolls it out; one that gets stuck is told as such."""
        began = time.monotonic()
        try:
            found = self._tried(case)
        except NotSo as stuck:
            say(f"{case.name} is stuck: {stuck}")
            found = {"state": "stuck", "sentence": str(stuck).partition("\n")[0], "harmed": 0}
            self._back(case)
        return Result(name=case.name, kind=case.kind, took_s=round(time.monotonic() - began, 1), **found)

    def _tried(self, case: Case) -> dict[str, Any]:
        settle(self._mesh, case.client)
        if case.before is not None:
            case.before(self._mesh)
            self._mesh.wait_seconds(2)
        try:
            return self._rolled_out(case)
        finally:
            if case.after is not None:
                case.after(self._mesh)
            self._back(case)

    def _rolled_out(self, case: Case) -> dict[str, Any]:
        mesh = self._mesh
        mark = mesh.mark(case.client)
        sha = mesh.push(case.files, case.name)
        state = self._rests(case, sha)
        if is_bad(case):
            settle(mesh, case.client)
        status = mesh.rollout(sha).get("status", {})
        return {
            "state": state,
            "sentence": status.get("sentence", "") or mesh.revision(sha).get("status", {}).get("sentence", ""),
            "harmed": harmed_since(mesh, mark, case.client),
            "detect_s": spelled(status["detectedAfter"]) if status.get("detectedAfter") else 0.0,
            "restore_s": harmed_span(mesh, mark, case.client),
        }

    def _rests(self, case: Case, sha: str) -> str:
        """What the commit has come to within its time; a state it is still in then says that it has not."""
        mesh = self._mesh
        end = time.monotonic() + (BAD_WITHIN if is_bad(case) else GOOD_WITHIN)
        while time.monotonic() < end:
            if case.meanwhile is not None:
                case.meanwhile(mesh)
            state = mesh.state(sha)
            if state not in UNDERWAY and not self._goes_on(sha):
                return state
            time.sleep(0.1)
        return mesh.state(sha)

    def _goes_on(self, sha: str) -> bool:
        """A rollout that bakes, or is being taken back, may still change its mind."""
        rollout = self._mesh.rollout(sha)
        return bool(rollout) and rollout["status"]["phase"] not in ENDED

    def _back(self, case: Case) -> None:
        """The base again, live, and traffic well."""
        restored = {name: self._base.get(name) for name in case.files}
        sha = self._mesh.push(restored, f"back from {case.name}")
        self._mesh.wait(sha, "live", timeout=GOOD_WITHIN)
        settle(self._mesh, case.client)

    def everywhere(self, case: Case) -> float:
        """Harmed in EVERYWHERE_S seconds when applied everywhere; 0 if that could not be measured."""
        try:
            settle(self._mesh, case.client)
            return self._left_everywhere(case)
        except NotSo as stuck:
            say(f"{case.name} everywhere is stuck: {stuck}")
            self._back(case)
            return 0.0

    def _keep(self, sha: str) -> None:
        """Nothing takes it back any more, not even to see whether harm falls."""
        self._mesh.until(lambda: self._mesh.phase(sha) in ("shifting", "paused"), "it to go everywhere", 20)
        with suppress(Failed):  # paused already: most of what it served had failed
            self._mesh.act("pause", why="left as it is")

    def _left_everywhere(self, case: Case) -> float:
        mesh = self._mesh
        mark = mesh.mark(case.client)
        sha = mesh.push(zoo.everywhere(case.files), f"{case.name}, everywhere")
        self._keep(sha)
        end = time.monotonic() + case.seconds
        while time.monotonic() < end:
            if case.meanwhile is not None:
                case.meanwhile(mesh)
            time.sleep(0.1)
        self._back(case)
        exposed = max(harmed_span(mesh, mark, case.client), case.seconds)
        return round(harmed_since(mesh, mark, case.client) * EVERYWHERE_S / exposed, 1)


# --- all of them ------------------------------------------------------------------------------------------------------


def tell(result: Result) -> None:
    numbers = f"harmed {result.harmed}"
    if not result.kind.startswith("good"):
        numbers += f", detected {result.detect_s:.1f} s, harmed for {result.restore_s:.1f} s"
    say(f"{result.kind:15} {result.name:26} {result.state:12} {numbers}, took {result.took_s:.0f} s. {result.sentence}")


def play(mesh: LiveMesh, cases: Sequence[Case]) -> list[Result]:
    """First what must stay, then what must not, then the harm of the latter when nothing holds it back: outages of the whole
    mesh teach the operator how bursty its traffic is, and must not blunt what is measured."""
    trial, found = Trial(mesh), []
    for case in sorted(cases, key=is_bad):
        found.append(trial.roll_out(case))
        tell(found[-1])
    for number, case in enumerate(sorted(cases, key=is_bad)):
        if is_bad(case):
            found[number] = replace(found[number], everywhere=trial.everywhere(case))
            say(
                f"{case.name:26} harmed {found[number].harmed} of {found[number].everywhere:.0f}, {found[number].ratio:.2%}"
            )
    return found


def is_bad(case: Case) -> bool:
    return not case.kind.startswith("good")


def figures(found: Sequence[Result], catastrophes: set[str]) -> dict[str, float]:
    bad = [item for item in found if not item.kind.startswith("good")]
    good = [item for item in found if item.kind.startswith("good")]
    return {
        "bad": len(bad),
        "rolled_back": sum(item.state == "rolled-back" for item in bad),
        "good": len(good),
        "good_live": sum(item.state == "live" for item in good),
        "false_rollbacks": sum(item.state in ("rolled-back", "aborted") for item in good),
        "harmed_ratio_median": _median([item.ratio for item in bad if item.everywhere], 4),
        "harmed_median": _median([item.harmed for item in bad], 1),
        "detect_s_median": _median([item.detect_s for item in bad if item.detect_s], 2),
        "restore_s_max_catastrophe": max((item.restore_s for item in bad if item.name in catastrophes), default=0.0),
    }


def _median(values: Sequence[float], digits: int) -> float:
    return round(statistics.median(values), digits) if values else 0.0


def chosen(names: Sequence[str]) -> list[Case]:
    cases = [*zoo.bad(), *zoo.good()]
    wanted = set(names or (QUICK_CASES if QUICK else [case.name for case in cases]))
    unknown = wanted - {case.name for case in cases}
    if unknown:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}")
    return [case for case in cases if case.name in wanted]


def main(names: Sequence[str]) -> int:
    began = time.monotonic()
    cases = chosen(names)
    with LiveMesh(zoo.workloads(), zoo.base(), steady_for=5, start_within=240) as mesh:
        say(
            f"{len(mesh.proxies())} proxies, {zoo.RATE + zoo.SOLO_RATE + zoo.PROBE_RATE} requests/s, {len(cases)} cases"
        )
        found = play(mesh, cases)
    summary = figures(found, {case.name for case in cases if case.catastrophe})
    if names:
        results.say(str(summary))
        return 0
    finish("bench-safety", summary, began, packages=("httptools", "uvloop"), cases=[asdict(item) for item in found])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotSo as failed:
        sys.exit(f"bench-safety: {failed}")
