"""The state file read without an operator: what `status`, `history` and `timeline` still know then.

Opens read-only and writes nothing. What an operator alone knows (proxies, registry, whether git answers) is
missing, and the view says so: its fault keeps Ready from being True.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from backstay.adapters.sqlite import SqliteStore
from backstay.cli.exits import Failed
from backstay.core import memory, status
from backstay.core.ports import Event, StateUnavailable
from backstay.core.rollout.model import MeshState
from backstay.core.snapshot import Snapshot
from backstay.core.view import MeshView
from backstay.settings import STATE_FILE

FAULT = "no operator is running; this is what it knew when it stopped"


def read_view(state_dir: Path) -> MeshView:
    """Raises Failed when there is no state, or none that can be read."""
    return asyncio.run(_view(state_dir))


def read_objects(state_dir: Path) -> status.Objects:
    return status.objects(read_view(state_dir), {})[0]


def read_events(state_dir: Path, *, since: float) -> Sequence[Event]:
    return asyncio.run(_events(state_dir, since))


async def _view(state_dir: Path) -> MeshView:
    store = _store(state_dir)
    try:
        body = await store.load()
        if body is None:
            raise Failed(f"{state_dir / STATE_FILE} holds no state yet", hint="start an operator with `backstay up`")
        state = msgspec.json.decode(body, type=MeshState)
        return MeshView(
            mesh=state.mesh,
            ref="",
            now=time.time(),
            state=state,
            fault=FAULT,
            observed_generation=1,
            desired=await _snapshot(store, state.desired_documents),
            stable=await _snapshot(store, state.stable_documents),
            effective=await _snapshot(store, state.candidate_documents or state.stable_documents),
            epoch=state.epoch,
        )
    except (StateUnavailable, msgspec.DecodeError) as error:
        raise Failed(str(error)) from error
    finally:
        await store.close()


async def _snapshot(store: SqliteStore, digest: str) -> Snapshot | None:
    blobs = dict(await store.blobs([digest])) if digest else {}
    if digest not in blobs:
        return None
    blobs |= await store.blobs(memory.document_blobs(blobs[digest]))
    return memory.recall(digest, blobs)


async def _events(state_dir: Path, since: float) -> Sequence[Event]:
    store = _store(state_dir)
    found: list[Event] = []
    try:
        while page := await store.events(after=found[-1].number if found else 0, since=since):
            found += page
    except StateUnavailable as error:
        raise Failed(str(error)) from error
    finally:
        await store.close()
    return found


def _store(state_dir: Path) -> SqliteStore:
    path = state_dir / STATE_FILE
    if not path.exists():
        raise Failed(
            f"no operator is running for {state_dir}, and there is no state in it either",
            hint="start one with `backstay up REPOSITORY --workloads FILE`, or name its folder with --state-dir",
        )
    return SqliteStore.open_readonly(path)
