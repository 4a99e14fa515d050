from pathlib import Path

from backstay.adapters.processes.tokens import Tokens


def test_a_token_works_once(tmp_path: Path) -> None:
    tokens, path = Tokens(), tmp_path / "a" / "token"
    tokens.issue(path)
    token = path.read_text()
    assert (tokens.redeem(path, token), tokens.redeem(path, token)) == (True, False)


def test_a_wrong_token_does_not_spend_the_right_one(tmp_path: Path) -> None:
    tokens, path = Tokens(), tmp_path / "token"
    tokens.issue(path)
    assert [tokens.redeem(path, wrong) for wrong in ("", "x", "é", path.read_text() + "x")] == [False] * 4
    assert tokens.redeem(path, path.read_text())


def test_a_token_is_private_and_new_each_time(tmp_path: Path) -> None:
    tokens, path = Tokens(), tmp_path / "token"
    tokens.issue(path)
    first = path.read_text()
    tokens.issue(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() != first
    assert len(first) == 43  # 32 random bytes
    assert not tokens.redeem(path, first)


def test_a_token_survives_the_operator_that_issued_it(tmp_path: Path) -> None:
    Tokens().issue(tmp_path / "token")
    assert Tokens().redeem(tmp_path / "token", (tmp_path / "token").read_text())


def test_a_withdrawn_token_is_worth_nothing(tmp_path: Path) -> None:
    tokens, path = Tokens(), tmp_path / "token"
    tokens.issue(path)
    token = path.read_text()
    tokens.withdraw(path)
    tokens.withdraw(path)
    assert not tokens.redeem(path, token)


def test_an_emptied_file_admits_nobody(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    assert not Tokens().redeem(tmp_path / "token", "")


def test_a_wish_is_heard_once_and_ends_with_the_instance(tmp_path: Path) -> None:
    tokens, path = Tokens(), tmp_path / "token"
    assert tokens.is_wanted(path) is False
    (tmp_path / "token.wanted").touch()
    assert [tokens.is_wanted(path), tokens.is_wanted(path)] == [True, False]
    (tmp_path / "token.wanted").touch()
    tokens.withdraw(path)
    assert tokens.is_wanted(path) is False
