"""Asks `hello` about fifty times a second. The environment's HTTP_PROXY leads every request through the mesh."""

import time
import urllib.request

while True:
    try:
        with urllib.request.urlopen("http://hello/", timeout=10) as answer:
            print(answer.read().decode().strip(), flush=True)
    except OSError as error:
        print(f"failed: {error}", flush=True)
    time.sleep(0.02)
