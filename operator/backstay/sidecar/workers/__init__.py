"""Several processes that share the traffic of one sidecar: `--concurrency N`.

The parent keeps what there is one of: the control connection, the state folder, the admin ports, and the listening sockets.
Each worker runs an engine of its own on sockets of the same ports (SO_REUSEPORT: the kernel spreads connections). The
parent's `Workers` is an Engine like any other: it passes calls on and adds up what the workers observed. Sockets outlive
workers: what is in the queue of one that has died is served by its successor, and replacing all of them loses nothing.
"""
