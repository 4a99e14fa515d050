"""The git server in the cluster serves what was pushed, over https, to those who have the password."""

from pathlib import Path

from cluster.gitserver import GitServer, clone, deploy
from cluster.reach import Reach

READ = """
import os, pathlib, subprocess, sys
pathlib.Path("/tmp/ca.crt").write_text(sys.argv[1])
done = subprocess.run(("git", "-c", "http.sslCAInfo=/tmp/ca.crt", "ls-remote", sys.argv[2], "main"),
    capture_output=True, text=True, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}, timeout=60)
print(done.stdout.strip() or done.stderr.strip())
"""


def test_a_pod_reads_what_was_pushed_if_it_has_the_password(images: Reach, namespace: str, tmp_path: Path) -> None:
    server = deploy(images, namespace, password="open-sesame")
    content = tmp_path / "content"
    content.mkdir()
    mesh = clone(server, "mesh", tmp_path / "mesh", content)
    mesh.write("mesh.yaml", "# nothing yet\n")

    commit = mesh.commit("First")

    assert _read(server, "https://backstay:open-sesame@") == f"{commit}\trefs/heads/main"
    assert "could not read Username" in _read(server, "https://")


def _read(server: GitServer, beginning: str) -> str:
    url = server.url("mesh").replace("https://", beginning, 1)
    command = ("exec", "-n", server.namespace, "deployment/git", "--", "python", "-c", READ, server.ca, url)
    return server.reach.kubectl(*command).strip()
