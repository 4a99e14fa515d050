"""`python tests/cluster up|down|status|build|load|git|stop|start|run`: the test cluster by hand.

`up` prints one line for the shell, `export KUBECONFIG=...`; everything else goes to standard error.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

if __package__ in {None, ""}:  # called by its folder's name: the package is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster import build, builds, gitserver, lifecycle
from cluster.lifecycle import Cluster, Level
from cluster.place import CannotStart
from cluster.reach import Reach


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def up(arguments: argparse.Namespace) -> int:
    level = Level.API if arguments.api_only else Level.WHOLE
    cluster = Cluster()
    for name in lifecycle.CONTROL_BINARIES if arguments.api_only else lifecycle.WHOLE_BINARIES:
        build.build(name, say)
    lacks = lifecycle.lacking(level)
    if lacks:
        say(f"the test cluster needs {lacks}")
        return 1
    cluster.up(level, say)
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def down(_: argparse.Namespace) -> int:
    Cluster().down()
    return 0


def status(_: argparse.Namespace) -> int:
    level = Cluster().level()
    print(level.value if level else "stopped")
    return 0 if level else 3


def build_all(_: argparse.Namespace) -> int:
    """Programs, and images where there are the tools for it: what the tests then need not wait for."""
    for name in build.PROGRAMS:
        build.build(name, say)
    if builds.lacking() is None:
        for name in builds.IMAGES:
            builds.archive(name, say)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    Cluster().stop_part(arguments.part)
    return 0


def start(arguments: argparse.Namespace) -> int:
    Cluster().start_part(arguments.part)
    return 0


def load(arguments: argparse.Namespace) -> int:
    """Build images of this checkout and hand them to the running cluster."""
    lacks = builds.lacking()
    if lacks:
        say(f"building images needs {lacks}")
        return 1
    cluster = Cluster()
    for name in arguments.image or builds.IMAGES:
        cluster.load(builds.archive(name, say))
        say(f"loaded {builds.IMAGES[name].tag}")
    return 0


def git(arguments: argparse.Namespace) -> int:
    """A forge for those who have none here: served in the cluster over https, pushed to through kubectl."""
    reach = Reach(kubeconfig=Cluster().kubeconfig, ours=Cluster())
    reach.kubectl("create", "namespace", "git")
    server = gitserver.deploy(reach, "git")
    made = gitserver.clone(server, arguments.repository, arguments.folder.absolute(), arguments.content)
    made.git("config", "protocol.ext.allow", "always")
    made.commit("The mesh as it is")
    made.git("branch", "--set-upstream-to=origin/main")
    ca = arguments.folder.with_name(f"{arguments.folder.name}-ca.crt")
    ca.write_text(server.ca, encoding="utf-8")
    print(f"{server.url(arguments.repository)}\nclone: {arguments.folder}, its server's certificate: {ca}")
    return 0


Verb = Callable[[argparse.Namespace], int]
PLAIN: Final[tuple[tuple[str, Verb, str], ...]] = (
    ("down", down, "stop and remove everything"),
    ("status", status, "say how much of it is up"),
    ("build", build_all, "build programs and images, start nothing"),
)
ON_A_PART: Final[tuple[tuple[str, Verb, str], ...]] = (
    ("stop", stop, "end one part"),
    ("start", start, "start that part again"),
)


def run(arguments: argparse.Namespace) -> int:
    return subprocess.run(Cluster().inside(arguments.command), check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/cluster", description="A real Kubernetes on this machine, for tests.")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("up", help="build what is missing, start, print KUBECONFIG")
    verb.add_argument("--api-only", action="store_true", help="no node: etcd, API server and controllers")
    verb.set_defaults(run=up)
    for name, action, text in PLAIN:
        verbs.add_parser(name, help=text).set_defaults(run=action)
    for name, action, text in ON_A_PART:
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("part", help="kube-apiserver, kubelet, ...")
        verb.set_defaults(run=action)
    verb = verbs.add_parser("load", help="build this checkout's images and import them into the node")
    verb.add_argument("image", nargs="*", choices=[*builds.IMAGES, []], help="operator, sidecar, sample; all if none")
    verb.set_defaults(run=load)
    verb = verbs.add_parser("git", help="serve a new repository in the cluster, with a clone of it here")
    verb.add_argument("repository", help="its name")
    verb.add_argument("folder", type=Path, help="where the clone goes")
    verb.add_argument("content", type=Path, help="a folder to copy its first files from")
    verb.set_defaults(run=git)
    verb = verbs.add_parser("run", help="run a command in the cluster's namespaces")
    verb.add_argument("command", nargs="+")
    verb.set_defaults(run=run)
    arguments = parser.parse_args()
    try:
        return int(arguments.run(arguments))
    except (build.CannotBuild, builds.CannotBuildImage, CannotStart) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
