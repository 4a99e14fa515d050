"""Real git repositories for tests: made by the real git, with an identity of their own and nobody's configuration."""

import os
import subprocess
from pathlib import Path

IDENTITY = {
    "GIT_AUTHOR_NAME": "author",
    "GIT_AUTHOR_EMAIL": "author@example.test",
    "GIT_COMMITTER_NAME": "author",
    "GIT_COMMITTER_EMAIL": "author@example.test",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "commit.gpgSign",
    "GIT_CONFIG_VALUE_0": "false",
}


class Repository:
    """A repository somebody works in."""

    def __init__(self, path: Path, *, branch: str = "main", object_format: str = "sha1") -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", f"--initial-branch={branch}", f"--object-format={object_format}")

    def git(self, *arguments: str, stdin: bytes | None = None) -> str:
        done = subprocess.run(
            ("git", *arguments),
            cwd=self.path,
            env={"PATH": os.environ["PATH"], "HOME": str(self.path), **IDENTITY},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def write(self, path: str, content: str | bytes) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, subject: str = "change", **files: str) -> str:
        """Commit what was written, and the given files (`a__yaml` for a.yaml)."""
        for name, content in files.items():
            self.write(name.replace("__", "."), content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={subject}")
        return self.git("rev-parse", "HEAD")

    def commit_tree(self, *entries: tuple[str, str, str], subject: str = "made by hand") -> str:
        """A commit with exactly these (mode, object id, name) entries, however odd; becomes the branch's tip."""
        listing = "".join(f"{mode} {_kind(mode)} {oid}\t{name}\0" for mode, oid, name in entries).encode()
        tree = self.git("mktree", "-z", "--missing", stdin=listing)
        sha = self.git("commit-tree", tree, "-m", subject)
        self.git("update-ref", "refs/heads/main", sha)
        return sha

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)


def _kind(mode: str) -> str:
    return {"160000": "commit", "040000": "tree"}.get(mode, "blob")
