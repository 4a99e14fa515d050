"""Backstay on Kubernetes: the ports of `core.ports` over the API server.

Each module knows one thing of the API. Nothing here decides: handlers wake the loop, the store remembers, the platform
shows what exists, objects show what was decided.
"""
