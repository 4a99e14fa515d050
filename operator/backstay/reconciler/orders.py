"""A person's orders: each is carried out or refused with a reason; nobody is left guessing."""

import logging
from collections.abc import Mapping
from typing import Final, Literal

from backstay.core.held import changed_documents
from backstay.core.ports import Clock, SourceRefused, SourceRepo, SourceUnavailable
from backstay.core.registry import Registry
from backstay.core.rollout.model import HeldSet, Order, Phase, RevisionRecord
from backstay.core.snapshot import Document, Snapshot
from backstay.core.validate import validate
from backstay.reconciler.conductor import Conductor
from backstay.reconciler.journal import Journal, sha_of
from backstay.reconciler.keeper import Keeper
from backstay.reconciler.source import SourceWatch
from backstay.redact import clean

_log: Final = logging.getLogger("backstay.reconciler")


class OrderRefused(Exception):
    """An order that cannot be carried out now. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Orders:
    """Carries out orders on one mesh."""

    def __init__(
        self,
        keeper: Keeper,
        journal: Journal,
        conductor: Conductor,
        watch: SourceWatch,
        source: SourceRepo,
        clock: Clock,
        namespace: str,
        trust_domain: str,
    ) -> None:
        self._trust_domain = trust_domain
        self._keeper = keeper
        self._journal = journal
        self._conductor = conductor
        self._watch = watch
        self._source = source
        self._clock = clock
        self._namespace = namespace
        self.handled_reconcile = ""
        """When `reconcile` was last ordered, as the order's own mark."""

    async def carry_out(self, verb: str, actor: str, reason: str, args: Mapping[str, str], registry: Registry) -> str:
        """What was done, in words. Raises OrderRefused."""
        match verb:
            case "pause" | "resume" | "promote" | "promote-full" | "abort":
                return self._order_rollout(verb, actor, reason)
            case "retry":
                return self._retry(args)
            case "rollback":
                return await self._rollback(actor, reason, args, registry)
            case "reconcile":
                self.handled_reconcile = args.get("requestedAt", "") or f"{self._clock.wall():.3f}"
                self._watch.again()
                return "looking at git now"
            case "suspend" | "unsuspend":
                return self._suspend(verb == "suspend", actor)
            case "revoke" | "unrevoke":
                return self._revoke(args.get("who", ""), registry, back=verb == "unrevoke")
            case _:
                raise OrderRefused("UnknownVerb", f"there is no order {verb!r}")

    def _order_rollout(
        self, verb: Literal["pause", "resume", "promote", "promote-full", "abort"], actor: str, reason: str
    ) -> str:
        rollout = self._conductor.running
        if rollout is None:
            raise OrderRefused("NoRollout", f"there is no running rollout to {verb}")
        if rollout.phase is Phase.ROLLING_BACK:
            raise OrderRefused("RollingBack", f"{rollout.id} is being rolled back, which always finishes")
        if verb == "resume" and rollout.phase is not Phase.PAUSED:
            raise OrderRefused("NotPaused", f"{rollout.id} is not paused, it is {rollout.phase.value}")
        self._conductor.orders.append(Order(verb=verb, actor=actor, reason=reason))
        return f"{verb}: {rollout.id}"

    def _retry(self, args: Mapping[str, str]) -> str:
        state = self._keeper.state
        wanted, document = args.get("commit", ""), args.get("document", "")
        chosen = [
            item
            for item in state.held
            if (not wanted or item.commit.startswith(wanted)) and (not document or document in item.documents)
        ]
        if not chosen and not state.frozen:
            raise OrderRefused("NothingHeld", "nothing is held that could be tried again")
        self._keeper.change(held=tuple(item for item in state.held if item not in chosen), frozen={})
        for held in chosen:
            self._journal.outcome(held.revision, "pending")
        self._conductor.replan = True
        return f"trying again: {', '.join(sorted({key for item in chosen for key in item.documents})) or 'all'}"

    def _revoke(self, who: str, registry: Registry, *, back: bool) -> str:
        """Put an identity on the list that all proxies obey, or take it off. Instances of one account share an identity."""
        identity = who if who.startswith("spiffe://") else self._identity_of(who, registry)
        known = set(self._keeper.state.revoked)
        if (identity in known) != back:
            raise OrderRefused("NothingDiffers", f"{identity} is {'not' if back else 'already'} revoked")
        self._keeper.change(revoked=tuple(sorted(known - {identity} if back else known | {identity})))
        if back:
            return f"{identity} is trusted again"
        shared = sorted(
            item.id
            for item in registry.instances.values()
            if (owner := registry.workloads.get(item.workload)) and item.identity(owner, self._trust_domain) == identity
        )
        return f"{identity} is revoked: {', '.join(shared) or 'no instance'} can speak to nobody of the mesh any more"

    def _identity_of(self, proxy: str, registry: Registry) -> str:
        """Raises OrderRefused."""
        instance = registry.instances.get(proxy)
        workload = registry.workloads.get(instance.workload) if instance is not None else None
        if instance is None or workload is None:
            raise OrderRefused("UnknownProxy", f"there is no proxy {proxy!r}; name one, or a SPIFFE ID")
        return instance.identity(workload, self._trust_domain)

    def _suspend(self, suspend: bool, actor: str) -> str:
        self._keeper.change(suspended=suspend, suspended_by=actor if suspend else "")
        self._watch.suspended = suspend
        if not suspend:
            self._watch.hint()
        return "git is not looked at until it is resumed" if suspend else "git is looked at again"

    async def _rollback(self, actor: str, reason: str, args: Mapping[str, str], registry: Registry) -> str:
        """Bring back what a revision said, and hold what git says instead."""
        state = self._keeper.state
        to, under = args.get("to", ""), args.get("path", "").strip("/")
        revision, wanted = await self._snapshot_of(to, registry)
        desired = self._keeper.snapshot(state.desired_documents) or Snapshot(revision="", documents={})
        keys = {
            key
            for key in changed_documents(desired.documents, wanted.documents)
            if _is_under(desired.documents.get(key), under) or _is_under(wanted.documents.get(key), under)
        }
        if not keys:
            raise OrderRefused("NothingDiffers", f"git already says what {to} says{f' under {under}' if under else ''}")
        commit = sha_of(state.desired_revision)
        keep = {key: self._keeper.keep_document(commit, key, wanted.documents.get(key)) for key in sorted(keys)}
        held = HeldSet(
            commit=commit,
            revision=state.desired_revision,
            rollout="",
            documents={key: desired.documents[key].digest if key in desired.documents else "" for key in sorted(keys)},
            sentence=f"rolled back to {revision} by {actor}{': ' + reason if reason else ''}",
            since=self._clock.wall(),
            keep=keep,
        )
        others = tuple(item for item in state.held if not set(item.documents) <= keys)
        self._keeper.change(held=(*others, held))
        self._conductor.by_hand, self._conductor.replan = revision, True
        return f"rolling back {len(keys)} document{'s' * (len(keys) != 1)} to {revision}"

    async def _snapshot_of(self, wanted: str, registry: Registry) -> tuple[str, Snapshot]:
        """A revision's documents: as they served, or as git has them. Raises OrderRefused."""
        if not wanted:
            raise OrderRefused("RevisionMissing", "rollback needs a revision to go back to")
        sha = sha_of(wanted)
        matches = [item for item in self._keeper.state.revisions if item.sha.startswith(sha)]
        if len(matches) != 1:
            why = "is not among the revisions seen" if not matches else "names several revisions"
            raise OrderRefused("UnknownRevision", f"{wanted} {why}; see backstay get revisions")
        record = matches[0]
        if record.documents:
            try:
                return record.revision, await self._keeper.recall(record.documents)
            except KeyError:
                _log.warning("rollback.forgotten revision=%s", record.revision)
        return record.revision, await self._snapshot_from_git(record, registry)

    async def _snapshot_from_git(self, record: RevisionRecord, registry: Registry) -> Snapshot:
        try:
            tree = await self._source.read(record.sha)
        except (SourceRefused, SourceUnavailable) as error:
            raise OrderRefused("RevisionUnreadable", clean(str(error))) from error
        namespace = self._namespace
        result = validate(tree.files, revision=record.revision, registry=registry, default_namespace=namespace)
        if result.snapshot is None:
            raise OrderRefused("RevisionInvalid", f"{record.revision} is not valid: {result.problems[0]}")
        return result.snapshot


def _is_under(document: Document | None, folder: str) -> bool:
    return document is not None and (not folder or document.file == folder or document.file.startswith(folder + "/"))
