"""One review as a job of its own: values in, a report out. `python -m backstay.reconciler.review_job` does it with limits.

What a pull request holds was written by somebody who may not be trusted, and comparing two meshes takes seconds. In a
process of its own neither a bomb nor the time it takes is felt by the loop that watches a rollout.
"""

import gc
import os
import resource
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from backstay.core.admitting import Rules, refusals
from backstay.core.ports import Proposal, Tree
from backstay.core.registry import Registry
from backstay.core.review.report import Report
from backstay.core.review.traffic import Traffic
from backstay.core.validate import Cache, Validated, validate
from backstay.reconciler.reviewing import Side, base_side, review_of

CPU_SECONDS: Final = 60
"""Thirty times what a mesh of 1,000 routes and 300 workloads takes."""
MEMORY: Final = 1024 * 1024 * 1024
"""Bytes of address space; that mesh takes 300 MB."""
NICENESS: Final = 5
"""What proxies are told goes first; on a busy machine it still gets a third of what another process gets."""
OUT_OF_MEMORY: Final = 3
"""Exit code."""


class ReviewJob(msgspec.Struct, frozen=True, kw_only=True):
    proposal: Proposal
    registry: Registry
    rules: Rules
    default_namespace: str
    inherited: Mapping[str, bytes] = {}
    """Documents of others that count here as well: path -> text."""
    traffic: Traffic | None = None
    rollout_defaults: Mapping[str, Any] = {}
    """`spec.rollout` of a Mesh document, where git does not say."""


def encoded(job: ReviewJob) -> bytes:
    return msgspec.msgpack.encode(job, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of a review job")


def report_in(data: bytes) -> Report:
    return msgspec.msgpack.decode(data, type=Report)


def reviewed(job: ReviewJob) -> Report:
    """The report, with what this operator would refuse among its problems."""
    cache = Cache()
    base = _base(job, cache)
    head = _head(job, base, cache)
    return review_of(
        base,
        head,
        job.registry,
        notes=job.proposal.notes,
        traffic=job.traffic,
        rollout_defaults=job.rollout_defaults,
    )


def _base(job: ReviewJob, cache: Cache) -> Side:
    tree = job.proposal.base
    files = {**job.inherited, **tree.files}
    return base_side(files, _shown(tree), default_namespace=job.default_namespace, cache=cache)


def _head(job: ReviewJob, base: Side, cache: Cache) -> Side:
    tree = job.proposal.head
    result = validate(
        {**job.inherited, **tree.files},
        revision=_shown(tree),
        registry=job.registry,
        default_namespace=job.default_namespace,
        refused=tree.refused,
        cache=cache,
    )
    before = base.validated.snapshot
    refused = refusals(result, before.documents if before is not None else None, job.rules, job.inherited)
    if refused:
        result = Validated(snapshot=None, documents=result.documents, problems=(*result.problems, *refused))
    return Side(revision=_shown(tree), validated=result)


def _shown(tree: Tree) -> str:
    """The head is no commit of the followed branch, so no branch is named."""
    return tree.revision.sha[:12]


def main() -> int:
    """A job on standard input, its report on standard output."""
    gc.disable()  # values that live until the end: looking through them again and again takes a third of the time
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=ReviewJob)
        sys.stdout.buffer.write(msgspec.msgpack.encode(reviewed(job)))
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    sys.exit(main())
