"""The sample application on plain Kubernetes: what the mesh is put under has to work without it."""

import json
import time

from cluster.builds import ROOT
from cluster.reach import Reach

ANSWERS_S = 60


def test_the_services_answer_each_other_by_name(images: Reach, namespace: str) -> None:
    images.kubectl("apply", "-n", namespace, "-k", str(ROOT / "example-repo" / "kubernetes"))
    for deployment in ("sa-webapp", "sa-logic-v1", "visitors"):
        images.kubectl("rollout", "status", "-n", namespace, f"deployment/{deployment}", "--timeout=180s", timeout=200)

    assert "200" in _outcomes_until_success(images, namespace)


def _outcomes_until_success(reach: Reach, namespace: str) -> dict[str, int]:
    deadline = time.monotonic() + ANSWERS_S
    outcomes: dict[str, int] = {}
    while "200" not in outcomes and time.monotonic() < deadline:
        for line in reach.kubectl("logs", "-n", namespace, "deployment/visitors", "--tail=3").splitlines():
            outcomes |= json.loads(line)["outcomes"]
        time.sleep(0.5)
    return outcomes
