"""The operator on a real API server: what people write there, what it shows there, and who may have what."""

import asyncio
import hmac
from typing import Any

import aiohttp

from backstay.core.resources import MESH_INTENT, MESH_REPOSITORY
from e2e.kubernetes.operators import MESH, World, conditions, route, until


def is_ready(found: Any) -> bool:
    return bool(found.get("Ready", "").startswith("True/") and "stale" not in found["Ready"])


async def test_a_commit_becomes_ready_and_every_document_is_shown(around: World) -> None:
    sha = around.repository().commit("first", mesh__yaml=MESH, b__yaml=route("b"))
    await around.start()
    await around.make_repository()
    found = await around.until_repository(is_ready)
    assert conditions(found) == {"Ready": "True/Succeeded", "Validated": "True/Valid"}
    assert found["status"]["lastAppliedRevision"] == f"main@sha1:{sha}"
    assert found["status"]["namespaces"] == [around.shop]
    assert "finalizers" not in found["metadata"]
    around.api.kubectl("wait", "-n", around.shop, "--for=condition=Ready", "--timeout=10s", "meshrepository/shop")
    intents = await around.until_intents("mesh.mesh", "route.b")
    assert intents["route.b"]["spec"]["place"] == "b.yaml:1"
    shown = around.api.kubectl("get", "backstay", "-n", around.shop)
    assert f"main@sha1:{sha}" in shown

    async def is_told() -> bool:
        return ("Normal", "CommitSeen", "first") in await around.events()

    await until(is_told, lambda: "the commit is not told of")


async def test_a_commit_that_is_wrong_is_stalled_with_its_line_and_changes_nothing(around: World) -> None:
    git = around.repository()
    good = git.commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    git.commit("typo", b__yaml=route("b").replace("timeouts", "timeout"))
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    assert conditions(found)["Stalled"] == "True/ValidationFailed"
    assert found["status"]["problems"][0]["file"] == "b.yaml"
    assert found["status"]["lastAppliedRevision"].endswith(good)
    assert "Reconciling" not in conditions(found)
    git.commit("mended", b__yaml=route("b"))
    await around.until_repository(is_ready)


async def test_a_secret_that_is_missing_is_named_and_waited_for(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository(secretRef={"name": "later"})
    found = await around.until_repository(lambda seen: "FetchFailed" in seen)
    assert conditions(found) == {
        "Ready": "False/AuthenticationFailed",
        "Reconciling": "True/ProgressingWithRetry",
        "FetchFailed": "True/AuthenticationFailed",
    }
    assert f"Secret {around.shop}/later, which secretRef names, does not exist" in str(found["status"]["conditions"])
    secret = {"metadata": {"name": "later"}, "stringData": {"ca.crt": around.forge.ca_file.read_text()}}
    await around.client.create(f"/api/v1/namespaces/{around.shop}/secrets", secret)
    await around.until_repository(is_ready)


async def test_a_ref_that_does_not_exist_is_stalled(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository(ref={"branch": "nowhere"})
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    assert conditions(found)["Stalled"] == "True/RefNotFound"
    path = MESH_REPOSITORY.path(around.shop, "shop")
    await around.client.patch(path, {"spec": {"ref": {"branch": "main"}}})
    found = await around.until_repository(is_ready)
    assert (found["status"]["ref"], found["status"]["observedGeneration"]) == ("main", 2)


async def test_a_document_of_another_namespace_refuses_its_whole_commit_by_name(around: World) -> None:
    git = around.repository()
    good = git.commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    foreign = route("b").replace("{name: b}", f"{{name: b, namespace: {around.other}}}")
    git.commit("reach", c__yaml=route("c"), b__yaml=foreign)
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    [problem] = [item for item in found["status"]["problems"] if item["severity"] == "error"]
    assert (problem["reason"], problem["document"]) == ("NamespaceNotAllowed", f"Route/{around.other}/b")
    assert problem["message"].startswith(f"'{around.other}' is not a namespace of this repository")
    assert found["status"]["lastAppliedRevision"].endswith(good)
    names = [item["metadata"]["name"] for item in await around.items(MESH_INTENT)]
    assert "route.c" not in names
    assert await around.items(MESH_INTENT, around.other) == []


async def test_of_two_repositories_that_want_a_namespace_the_second_is_refused(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository("first")
    await around.until_repository(is_ready, name="first")
    await around.make_repository("second")
    found = await around.until_repository(lambda seen: "Stalled" in seen, name="second")
    assert conditions(found) == {"Ready": "False/NamespaceClaimed", "Stalled": "True/NamespaceClaimed"}
    assert f"{around.shop}/first already" in str(found["status"]["conditions"])
    await around.client.delete(MESH_REPOSITORY.path(around.shop, "first"))
    await around.until_repository(is_ready, name="second")


async def test_a_foreign_namespace_has_to_grant_itself(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository(allow={"namespaces": [around.shop, around.other]})
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    assert conditions(found)["Stalled"] == "True/NamespaceNotGranted"
    grant = {"backstay.dev/repository": f"{around.shop}/shop"}
    await around.client.patch(f"/api/v1/namespaces/{around.other}", {"metadata": {"annotations": grant}})
    found = await around.until_repository(is_ready)
    assert found["status"]["namespaces"] == sorted([around.shop, around.other])


async def test_a_projection_that_is_edited_by_hand_is_put_back_with_an_event(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH, b__yaml=route("b"))
    operator = await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    assert operator.meshes is not None
    await asyncio.wait_for(operator.meshes.running[f"{around.shop}/shop"].projection.settled(), 30)
    path = MESH_INTENT.path(around.shop, "route.b")
    await around.client.patch(path, {"spec": {"file": "elsewhere.yaml"}}, field_manager="kubectl-edit")

    async def is_back() -> bool:
        return bool((await around.client.get(path))["spec"]["file"] == "b.yaml")

    await until(is_back, lambda: "the edit stands")

    async def is_told() -> bool:
        return any(reason == "HandEdited" for _, reason, _ in await around.events())

    await until(is_told, lambda: "nobody was told")
    await around.client.delete(path)
    await until(is_back_again(around, path), lambda: "the intent is gone")


def is_back_again(around: World, path: str) -> Any:
    async def back() -> bool:
        return any(item["metadata"]["name"] == "route.b" for item in await around.items(MESH_INTENT))

    return back


async def test_a_deleted_repository_takes_its_projections_with_it_in_every_namespace(around: World) -> None:
    foreign = route("c").replace("{name: c}", f"{{name: c, namespace: {around.other}}}")
    around.repository().commit("first", mesh__yaml=MESH, c__yaml=foreign)
    await around.start()
    grant = {"backstay.dev/repository": f"{around.shop}/shop"}
    await around.client.patch(f"/api/v1/namespaces/{around.other}", {"metadata": {"annotations": grant}})
    await around.make_repository(allow={"namespaces": [around.shop, around.other]})
    await around.until_repository(is_ready)

    async def are_shown() -> bool:
        return len(await around.items(MESH_INTENT, around.other)) == 1

    await until(are_shown, lambda: "the foreign document is not shown")
    await around.client.delete(MESH_REPOSITORY.path(around.shop, "shop"))

    async def are_gone() -> bool:
        return not await around.items(MESH_INTENT, around.other) and not await around.items(MESH_INTENT)

    await until(are_gone, lambda: "projections are left")


async def test_a_request_to_look_is_honoured_and_suspend_stops_looking(around: World) -> None:
    git = around.repository()
    git.commit("first", mesh__yaml=MESH)
    await around.start()
    await around.make_repository(interval="1h")
    await around.until_repository(is_ready)
    second = git.commit("second", b__yaml=route("b"))
    path = MESH_REPOSITORY.path(around.shop, "shop")
    await around.client.patch(path, {"metadata": {"annotations": {"backstay.dev/requestedAt": "now-please"}}})

    async def has_looked() -> bool:
        status = (await around.client.get(path))["status"]
        return bool(
            status.get("lastHandledReconcileAt") == "now-please"
            and status.get("lastAppliedRevision", "").endswith(second)
        )

    await until(has_looked, lambda: "nobody has looked")
    await around.client.patch(path, {"spec": {"suspend": True, "interval": "1s"}})

    async def is_suspended() -> bool:
        return bool((await around.client.get(path))["status"].get("suspendedBy") == "spec.suspend")

    await until(is_suspended, lambda: "it is not suspended")
    seen = len(around.forge.seen)
    await asyncio.sleep(2.5)  # two intervals in which nothing must be asked: there is no event to wait for
    assert len(around.forge.seen) == seen
    await around.client.patch(path, {"spec": {"suspend": False}})
    third = git.commit("third", b__yaml=route("b", "4s"))
    found = await around.until_repository(is_ready)
    await until(lambda: _applied(around, third), lambda: f"{found['status'].get('lastAppliedRevision')} is live")


async def _applied(around: World, sha: str) -> bool:
    found = await around.found(MESH_REPOSITORY, "shop")
    return bool(found["status"].get("lastAppliedRevision", "").endswith(sha))


async def test_a_second_replica_takes_over_from_one_that_died_and_keeps_what_was_known(around: World) -> None:
    git = around.repository()
    git.commit("first", mesh__yaml=MESH)
    first = await around.start("pod-a")
    await around.make_repository()
    before = await around.until_repository(is_ready)
    second = await around.start("pod-b")
    assert second.elector.term == 0
    async with aiohttp.ClientSession() as session:
        for operator in (first, second):
            for page in ("healthz", "readyz"):
                url = f"http://127.0.0.1:{operator.doors.metrics_port}/{page}"
                async with session.get(url) as answer:
                    assert (page, answer.status) == (page, 200)
    loop = asyncio.get_running_loop()
    died = loop.time()
    await around.kill(first)

    async def leads() -> bool:
        return second.elector.is_leading and second.meshes is not None

    await until(leads, lambda: "nobody leads")
    assert loop.time() - died < 15
    sha = git.commit("second", b__yaml=route("b"))
    await until(lambda: _applied(around, sha), lambda: "the new leader does not work")
    after = await around.found(MESH_REPOSITORY, "shop")
    assert after["status"]["operator"]["epoch"] == before["status"]["operator"]["epoch"] + 1

    def since(found: Any) -> str:
        return next(str(c["lastTransitionTime"]) for c in found["status"]["conditions"] if c["type"] == "Validated")

    assert since(after) == since(before)


async def test_a_leader_that_is_told_to_end_hands_over_at_once(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    first, second = await around.start("pod-a"), await around.start("pod-b")
    loop = asyncio.get_running_loop()
    await around.end(first)
    began = loop.time()

    async def leads() -> bool:
        return second.elector.is_leading

    await until(leads, lambda: "nobody leads")
    assert loop.time() - began < 5, "waited for the Lease to run out"


async def test_at_rest_it_asks_the_api_server_less_than_once_a_second(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH, b__yaml=route("b"))
    operator, standby = await around.start("pod-a"), await around.start("pod-b")
    await around.make_repository(interval="30s")
    await around.until_repository(is_ready)
    await asyncio.sleep(3)  # what follows being ready
    clients = (operator.client, standby.client)

    def asked() -> int:
        return sum(n for client in clients for (verb, _), n in client.requests.items() if verb != "WATCH")

    before = asked()
    await asyncio.sleep(10)
    assert asked() - before <= 10


async def test_metrics_are_labelled_with_their_repository(around: World) -> None:
    around.repository().commit("first", mesh__yaml=MESH)
    operator = await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{operator.doors.metrics_port}/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    assert f'backstay_condition{{repository="{around.shop}/shop",type="Ready"}} 1.0' in lines
    assert "backstay_leader 1.0" in lines


async def test_the_platforms_mesh_counts_in_every_repository_and_may_not_be_contradicted(around: World) -> None:
    platform, shop = around.repository("platform"), around.repository()
    platform.commit("defaults", mesh__yaml=MESH.replace("10s", "7s"))
    shop.commit("first", b__yaml=route("b"))
    operator = await around.start()
    await around.make_repository("mesh", namespace=around.system, url=f"{around.forge.url}/platform")
    await around.until_repository(is_ready, name="mesh", namespace=around.system)
    await around.make_repository()
    await around.until_repository(is_ready)
    assert operator.meshes is not None
    mesh = operator.meshes.running[f"{around.shop}/shop"]

    def timeout() -> str:
        view = mesh.reconciler.view() if mesh.reconciler is not None else None
        return view.stable.mesh.defaults.timeout if view is not None and view.stable is not None else ""

    async def is_seven() -> bool:
        return timeout() == "7s"

    await until(is_seven, lambda: f"the timeout is {timeout()!r}")
    platform.commit("slower", mesh__yaml=MESH.replace("10s", "9s"))

    async def is_nine() -> bool:
        return timeout() == "9s"

    await until(is_nine, lambda: f"the timeout is {timeout()!r}")
    await around.until_intents("route.b")
    shop.commit("own", mesh__yaml=MESH)
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    assert "mesh.yaml" in str(found["status"]["problems"])


async def test_a_commit_that_removes_most_of_it_is_refused_until_somebody_allows_it(around: World) -> None:
    git = around.repository()
    git.commit("first", mesh__yaml=MESH, **{f"r{n}__yaml": route(f"r{n}") for n in range(5)})
    await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    git.git("rm", "-q", *(f"r{n}.yaml" for n in range(5)))
    emptied = git.commit("oops")
    found = await around.until_repository(lambda seen: "Stalled" in seen)
    [problem] = [item for item in found["status"]["problems"] if item["severity"] == "error"]
    assert problem["reason"] == "PruneGuard"
    path = MESH_REPOSITORY.path(around.shop, "shop")
    await around.client.patch(path, {"spec": {"pruneGuard": {"maxPercent": 100}}})
    await around.until_repository(is_ready)
    assert await _applied(around, emptied)


async def test_a_knock_at_a_standby_reaches_the_leader(around: World) -> None:
    git = around.repository()
    git.commit("first", mesh__yaml=MESH)
    leader, standby = await around.start("pod-a"), await around.start("pod-b")
    token = {"metadata": {"name": "hook"}, "stringData": {"token": "s3cret"}}
    await around.client.create(f"/api/v1/namespaces/{around.shop}/secrets", token)
    await around.make_repository(interval="1h", webhook={"secretRef": {"name": "hook"}})
    await around.until_repository(is_ready)
    sha = git.commit("second", b__yaml=route("b"))
    standby.leader_hooks = lambda: f"127.0.0.1:{leader.doors.hooks_port}"  # type: ignore[method-assign] # no pods here
    body = b'{"ref": "refs/heads/main"}'
    signature = "sha256=" + hmac.new(b"s3cret", body, "sha256").hexdigest()
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": signature, "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{standby.doors.hooks_port}/hooks/{around.shop}/shop"

    async def is_taken() -> bool:
        async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
            return answer.status == 202

    await until(is_taken, lambda: "the knock was not taken")
    await until(lambda: _applied(around, sha), lambda: "nobody has looked")
    async with aiohttp.ClientSession() as session:
        forged = {**headers, "X-Hub-Signature-256": "sha256=00"}
        async with session.post(url, data=body, headers=forged) as answer:
            assert answer.status == 401


async def test_a_repository_that_is_made_again_goes_on_where_it_was_even_without_git(around: World) -> None:
    """As after its kind was deleted by mistake: what served is known, and is not begun anew."""
    sha = around.repository().commit("first", mesh__yaml=MESH, b__yaml=route("b"))
    await around.start()
    await around.make_repository()
    await around.until_repository(is_ready)
    await around.client.delete(MESH_REPOSITORY.path(around.shop, "shop"))

    async def are_gone() -> bool:
        return not await around.items(MESH_INTENT)

    await until(are_gone, lambda: "projections are left")
    around.forge.accept_basic("nobody", "comes in")
    await around.make_repository()
    found = await around.until_repository(lambda seen: "FetchFailed" in seen)
    assert await _applied(around, sha)
    assert conditions(found)["FetchFailed"] == "True/AuthenticationFailed"

    async def is_told() -> bool:
        return ("Warning", "AuthenticationFailed") in [event[:2] for event in await around.events()]

    await until(is_told, lambda: "nobody was told that git refuses us")
    assert "route.b" in [item["metadata"]["name"] for item in await around.items(MESH_INTENT)]
