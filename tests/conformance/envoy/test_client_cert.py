"""The cases of X-Forwarded-Client-Cert through Envoy, which the field is from."""

from pathlib import Path
from typing import Any

import pytest

from conformance.security.runner import Authority
from conformance.security.test_client_cert import check, intents

from .cases import groups
from .test_authorization import world


@pytest.mark.parametrize("group", groups("security/client_cert.yaml"), ids=lambda group: group.get("mode", "unsaid"))
async def test_envoy_tells_the_same(tmp_path: Path, group: dict[str, Any]) -> None:
    async with world(intents(group.get("mode", "")), Authority(tmp_path)) as running:
        for case in group["cases"]:
            await check(running, case)
