"""`make bench-verdict`: how often the verdict is wrong, and how much harm it lets through, on the real code.

Waves of 300 one-second blocks are simulated and given to core/rollout/verdict.py block by block; every look is judged.

false_alarms_per_1000  waves without any difference between the cohorts that were failed, per 1,000: base rates of 0.05,
    1 and 5 %, three traffic levels, independent and bursty (beta-binomial, correlation 0.05 within a second and cohort),
    a common outage (half of all requests fail for 10 s) in a quarter of them. Nine of ten waves know stable's last 60 s,
    as a running operator does, the tenth begins knowing nothing, as right after an operator's first start.
harm_over_limit_max    greatest (median bad requests until the decision - those of one block) / information limit, with
    limit = p * ln(1/alpha) / KL(p, base + margin): no test can need fewer on average.

QUICK=1 simulates a twentieth of the waves. The last line is one JSON object; full runs keep it in docs/benchmarks/.
"""

import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from backstay import __version__
from backstay.core.rollout import verdict
from backstay.core.rollout.model import Block, Counts, Settings, Verdict

SECONDS: Final = 300
HISTORY: Final = 60
WAVES: Final = 10_000
HARM_RUNS: Final = 300
COLD: Final = 10
"""One wave in so many begins without knowing stable."""
WORKERS: Final = 2
KEPT: Final = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "bench-verdict.json"
SETTINGS: Final = Settings()


class Scene(NamedTuple):
    """One kind of wave."""

    base: float
    rate: float
    """Of the candidate."""
    n: int
    """Candidate's requests a second."""
    nb: int
    burst: float = 0.0
    outage: bool = False


NULLS: Final = tuple(
    Scene(base, base, n, nb, burst, outage)
    for base in (0.0005, 0.01, 0.05)
    for n, nb, weight in ((2, 14, 4), (20, 140, 5), (200, 1400, 1))
    for burst in (0.0, 0.05)
    for outage in (False, False, False, True)
    for _ in range(weight)
)
"""Mostly the two lower traffic levels: the greatest costs a hundred times as much to simulate."""

HARMS: Final = (
    Scene(0.0005, 0.0105, 20, 140),
    Scene(0.0005, 0.05, 20, 140),
    Scene(0.01, 0.06, 20, 140),
    Scene(0.0005, 0.3, 20, 140),
    Scene(0.0005, 1.0, 20, 140),
    Scene(0.0005, 0.05, 2, 14),
    Scene(0.0005, 0.3, 2, 14),
    Scene(0.0005, 1.0, 2, 14),
    Scene(0.05, 0.1, 200, 1400),
)
"""The rows of reference verdict.md section 1."""


def binomial(rng: random.Random, n: int, p: float) -> int:
    """By gaps between successes: as many draws as successes."""
    if p <= 1e-9:  # below a chance in a million waves; its gaps would not fit an integer
        return 0
    if p > 0.5:
        return n - binomial(rng, n, 1.0 - p)
    log_q, at, count = math.log1p(-p), 0, 0
    while True:
        at += int(math.log(1.0 - rng.random()) / log_q) + 1
        if at > n:
            return count
        count += 1


def bad(rng: random.Random, n: int, p: float, burst: float) -> int:
    if not burst or p >= 1.0:
        return binomial(rng, n, p)
    size = 1.0 / burst - 1.0
    return binomial(rng, n, rng.betavariate(p * size, (1.0 - p) * size))


def block(second: int, n: int, k: int, nb: int, kb: int, share: float) -> Block:
    cohorts = {"s": Counts(total=nb, bad=kb, attempts=nb)}
    if n:
        cohorts["c"] = Counts(total=n, bad=k, attempts=n)
    return Block(workload="shop/w", second=second, share=share, expected=share, cohorts=cohorts)


def start(rng: random.Random, scene: Scene, *, cold: bool) -> verdict.Tests:
    if cold:
        return verdict.Tests()
    before = verdict.Before()
    total = scene.n + scene.nb
    for second in range(-HISTORY, 0):
        before = verdict.known(before, block(second, 0, 0, total, bad(rng, total, scene.base, scene.burst), 0.0))
    return verdict.seed(before)


def wave(seed: int, scene: Scene, *, cold: bool) -> tuple[Verdict | None, int, int]:
    """(FAIL or None, bad candidate requests until then, seconds)"""
    rng = random.Random(seed)
    tests = start(rng, scene, cold=cold)
    share = scene.n / (scene.n + scene.nb)
    outage = rng.randrange(5, SECONDS - 15) if scene.outage else SECONDS
    harm = 0
    for second in range(SECONDS):
        out = outage <= second < outage + 10
        rate, base = (0.5, 0.5) if out else (scene.rate, scene.base)
        k, kb = bad(rng, scene.n, rate, scene.burst), bad(rng, scene.nb, base, scene.burst)
        harm += k
        tests = verdict.observe(tests, block(second, scene.n, k, scene.nb, kb, share), "c", "s", SETTINGS)
        if verdict.judge(tests, SETTINGS).verdict is Verdict.FAIL:
            return Verdict.FAIL, harm, second + 1
    return None, harm, SECONDS


def false_alarm(seed: int) -> tuple[int, bool]:
    """(which scene, failed)"""
    index = seed % len(NULLS)
    failed, _, _ = wave(seed, NULLS[index], cold=seed // len(NULLS) % COLD == 0)
    return index, failed is Verdict.FAIL


def harm(job: tuple[int, int]) -> tuple[int, int, int, bool]:
    index, seed = job
    failed, count, seconds = wave(1_000_000 + seed, HARMS[index], cold=seed % COLD == 0)
    return index, count, seconds, failed is Verdict.FAIL


def limit(scene: Scene) -> float:
    """Bad requests that any test needs on average."""
    null = scene.base + SETTINGS.margin
    rest = 0.0 if scene.rate >= 1 else (1 - scene.rate) * math.log((1 - scene.rate) / (1 - null))
    return scene.rate * -math.log(SETTINGS.false_alarm) / (scene.rate * math.log(scene.rate / null) + rest)


def main() -> int:
    began = time.monotonic()
    quick = bool(os.environ.get("QUICK"))
    waves, runs = (WAVES // 20, HARM_RUNS // 5) if quick else (WAVES, HARM_RUNS)
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        jobs = [(index, run) for index in range(len(HARMS)) for run in range(runs)]
        harms = pool.map(harm, jobs, chunksize=20)
        worst = report_harms(harms)
        alarms = pool.map(false_alarm, range(waves), chunksize=20)
    failed = report_alarms(alarms)
    result = {
        "name": "bench-verdict",
        "figures": {
            "false_alarms_per_1000": round(1000 * failed / waves, 3),
            "harm_over_limit_max": round(worst, 2),
            "waves": waves,
        },
        "versions": {"backstay": __version__, "python": platform.python_version(), "msgspec": msgspec.__version__},
        "seconds": round(time.monotonic() - began, 1),
    }
    if not quick:
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


def report_harms(harms: list[tuple[int, int, int, bool]]) -> float:
    worst = 0.0
    for index, scene in enumerate(HARMS):
        mine = [h for h in harms if h[0] == index]
        median = statistics.median(h[1] for h in mine)
        ratio = (median - scene.n * scene.rate) / limit(scene)
        found = sum(h[3] for h in mine) / len(mine)
        seconds = statistics.median(h[2] for h in mine)
        print(
            f"{scene.base:7.2%} -> {scene.rate:7.2%} at {scene.n}/s: found {found:.0%}, {seconds:.0f} s, "
            f"{median:.0f} bad, limit {limit(scene):.1f}, ratio {ratio:.2f}",
            flush=True,
        )
        worst = max(worst, ratio if found >= 0.5 else math.inf)
    return worst


def report_alarms(alarms: list[tuple[int, bool]]) -> int:
    counts: dict[Scene, list[int]] = {}
    for index, failed in alarms:
        seen = counts.setdefault(NULLS[index], [0, 0])
        seen[0] += 1
        seen[1] += failed
    for scene, (total, failed_count) in counts.items():
        print(f"no difference at {scene.base:.2%}, {scene.n}/s, burst {scene.burst}, "
              f"{'outage' if scene.outage else 'calm'}: {failed_count} of {total} failed")  # fmt: skip
    return sum(failed for _, failed in alarms)


if __name__ == "__main__":
    sys.exit(main())
