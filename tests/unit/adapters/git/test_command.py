from pathlib import Path

from backstay.adapters.git.address import Credentials
from backstay.adapters.git.command import ssh_command, version_warning


def test_ssh_asks_nothing_trusts_nobody_new_and_reads_no_configuration() -> None:
    command = ssh_command(Credentials(ssh_identity=Path("/keys/a b"), ssh_known_hosts=Path("/keys/hosts")))
    assert command == (
        "ssh -F /dev/null -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=10 -oServerAliveInterval=5 "
        "-oServerAliveCountMax=3 -oForwardAgent=no -oPermitLocalCommand=no -oUserKnownHostsFile=/keys/hosts "
        "-oIdentitiesOnly=yes -i '/keys/a b'"
    )


def test_a_git_that_is_older_than_advised_is_told_apart() -> None:
    assert version_warning((2, 50, 1)) is None
    assert version_warning((2, 39, 5)) == (
        "git 2.39.5 is older than 2.50.1, which fixes ways out of a hostile repository; "
        "upgrade it, or make sure your distribution has patched it"
    )
