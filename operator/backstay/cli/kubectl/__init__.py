"""`kubectl backstay VERB ...`: the command line of one machine, for a cluster.

Verbs that need no operator run here. Verbs that read files of this machine and ask the operator run here too, over a
tunnel to the leader's socket. All others run in the leader's pod, through the API server's exec: who may exec there may
steer, and the API server's word on who it was is kept with each order. `check` looks at the cluster itself.
"""

from backstay.cli.kubectl.plugin import main

__all__ = ["main"]
