"""`python -m backstay.cli.kubectl.attached VERB ...`, in the operator's pod: `backstay`, until the other side is gone.

The kubelet ends nobody's process when a connection to it closes; it closes its standard input. That end is an interrupt
here, as Ctrl-C is for those who sit in front of it.
"""

import os
import signal
import sys
import threading

from backstay.cli.main import main


def _until_input_ends() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    threading.Thread(target=_until_input_ends, daemon=True, name="input").start()
    main(sys.argv[1:])
