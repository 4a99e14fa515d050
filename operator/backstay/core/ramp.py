"""Traffic steps: a Route whose weights changed may go there gradually instead of proxy by proxy.

Git holds the destination; the weights on the way exist only in the rollout, so nothing fights over them. A change of
anything but weights cannot be walked half-way and takes the ordinary waves.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from backstay.core import intents
from backstay.core.registry import qualify
from backstay.core.snapshot import Document, DocumentKey, Snapshot

SCALE: Final = 10_000
"""Weights on the way are integers out of this many: a hundredth of a percent."""
_Ref = tuple[str, int | None, str | None]


def ramped(
    old: Mapping[DocumentKey, Document], new: Snapshot, documents: Iterable[DocumentKey], steps: Sequence[float]
) -> list[Snapshot] | None:
    """One snapshot a step, the last being the wanted one; None where these documents cannot be ramped."""
    keys = tuple(documents)
    if not steps or not keys:
        return None
    ways = {key: _way(old.get(key), new.documents.get(key)) for key in keys}
    if any(way is None for way in ways.values()):
        return None
    snapshots = []
    for step in steps[:-1]:
        between = {key: _between(*way, step) for key, way in ways.items() if way is not None}
        snapshots.append(Snapshot(revision=new.revision, documents={**new.documents, **between}))
    return [*snapshots, new]


def gaining(
    old: Mapping[DocumentKey, Document], new: Mapping[DocumentKey, Document], documents: Iterable[DocumentKey]
) -> tuple[str, ...]:
    """`service.namespace:port/subset` of every destination whose share grows. Ports default to 80 as for URLs."""
    found: set[str] = set()
    for key in documents:
        way = _way(old.get(key), new.get(key))
        if way is not None:
            found |= _growing(*way)
    return tuple(sorted(found))


def _way(old: Document | None, new: Document | None) -> tuple[Document, Document] | None:
    """Both ends, if they differ in nothing but weights."""
    if old is None or new is None or not isinstance(old.spec, intents.RouteSpec):
        return None
    if not isinstance(new.spec, intents.RouteSpec) or _without_weights(old.spec) != _without_weights(new.spec):
        return None
    return old, new


def _without_weights(spec: intents.RouteSpec) -> intents.RouteSpec:
    rules = tuple(msgspec.structs.replace(rule, backend_refs=(_ANY,)) for rule in spec.rules)
    return msgspec.structs.replace(spec, rules=rules, rollout=intents.TrafficSteps())


_ANY: Final = intents.BackendRef(name="any")


def _shares(rule: intents.RouteRule) -> dict[_Ref, float]:
    total = sum(ref.weight for ref in rule.backend_refs) or 1
    return {(ref.name, ref.port, ref.subset): ref.weight / total for ref in rule.backend_refs}


def _between(old: Document, new: Document, step: float) -> Document:
    before, after = old.spec, new.spec
    if not isinstance(before, intents.RouteSpec) or not isinstance(after, intents.RouteSpec):
        raise TypeError("only routes have weights")
    rules = tuple(_mixed(a, b, step) for a, b in zip(before.rules, after.rules, strict=True))
    return _on_the_way(new, msgspec.structs.replace(after, rules=rules), step)


def _on_the_way(document: Document, spec: intents.RouteSpec, step: float) -> Document:
    """The document with another spec; its digest says that it is not the one in git."""
    return Document(
        kind=document.kind,
        metadata=document.metadata,
        spec=spec,
        file=document.file,
        line=document.line,
        positions=document.positions,
        raw=document.raw,
        digest=f"{document.digest}@{step:g}",
    )


def _mixed(old: intents.RouteRule, new: intents.RouteRule, step: float) -> intents.RouteRule:
    before, after = _shares(old), _shares(new)
    refs = []
    for name, port, subset in sorted(before.keys() | after.keys(), key=str):
        ref = (name, port, subset)
        share = before.get(ref, 0.0) + step * (after.get(ref, 0.0) - before.get(ref, 0.0))
        refs.append(intents.BackendRef(name=name, port=port, subset=subset, weight=round(share * SCALE)))
    return msgspec.structs.replace(new, backend_refs=tuple(refs))


def _growing(old: Document, new: Document) -> set[str]:
    before, after = old.spec, new.spec
    if not isinstance(before, intents.RouteSpec) or not isinstance(after, intents.RouteSpec):
        return set()
    found: set[str] = set()
    for a, b in zip(before.rules, after.rules, strict=True):
        shares = _shares(a)
        grown = [ref for ref, share in _shares(b).items() if share > shares.get(ref, 0.0)]
        found.update(_label(ref, new, after) for ref in grown)
    return found


def _label(ref: _Ref, document: Document, spec: intents.RouteSpec) -> str:
    name, port, subset = ref
    service = qualify(name, document.metadata.namespace)
    return f"{service}:{port or spec.port or 80}/{subset or ''}"
