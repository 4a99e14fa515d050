"""The sidecar: a separate program that imports only `backstay.config`, `backstay.tasks` and `backstay.redact`.

The agent (enrol, stream, store, leases, reports) speaks with the operator; an Engine does the traffic.
"""
