"""The command line: what it teaches, what it refuses, with which exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hongyan import __version__
from hongyan.auth import TokenVerifier
from hongyan.cli.main import main
from hongyan.config import Settings
from hongyan.datadir import read_secret


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`run("serve", …)` in an empty directory and a clean environment; `run.served` has the settings."""
    for name in list(os.environ):
        if name.upper().startswith("HONGYAN_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    served: list[Settings] = []

    def fake_run(settings: Settings) -> int:
        served.append(settings)
        return 7

    monkeypatch.setitem(sys.modules, "hongyan.app", SimpleNamespace(run=fake_run))

    def invoke(*arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env=env)

    invoke.served = served  # type: ignore[attr-defined]
    return invoke


def test_help_teaches(run):
    for arguments in (["--help"], ["-h"]):
        answer = run(*arguments)
        assert answer.exit_code == 0
        assert all(word in answer.output for word in ("serve", "chat", "token", "hongyan chat --user alice"))
    for command in ("serve", "token"):
        answer = run(command, "--help")
        assert answer.exit_code == 0
        assert "Example" in answer.output
    assert f"hongyan, version {__version__}" in run("--version").output


def test_defaults_in_the_help_are_the_defaults(run):
    text = " ".join(run("serve", "--help").output.split())
    settings = Settings()
    for name in ("host", "port", "http_port", "data_dir", "workers", "rate_limit", "log_level", "log_format"):
        assert "--" + name.replace("_", "-") in text
        assert f"[default: {getattr(settings, name)}]" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--port", "abc"], "--port"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "extra"], "extra"),
        (["serve", "--port", "99999"], "hongyan serve: --port: "),
        (["serve", "--http-port", "-1"], "hongyan serve: --http-port: "),
        (["serve", "--rate-limit", "-1"], "hongyan serve: --rate-limit: "),
        (["serve", "--log-level", "loud"], "hongyan serve: --log-level: "),
        (["serve", "--workers", "many"], "hongyan serve: --workers: a number is due, or auto"),
        (["serve", "--workers", "65"], "hongyan serve: --workers: "),
        (["serve", "--host", "999.1.1.1"], "hongyan serve: --host: "),
        (["serve", "--data-dir", ""], "hongyan serve: --data-dir: "),
        (["serve", "--workers", "0"], "--workers: "),
        (["serve", "--config", "gone.toml"], "--config gone.toml: No such file"),
        (["serve", "--port", "8081"], "8081 is the gateway's port already"),
        (["token"], "USER"),
        (["token", "@alice"], "write alice"),
        (["token", "a b"], "'a b' is no user id"),
        (["token", "hongyan.x"], "the server's"),
        (["token", "alice", "--ttl", "24"], "'24' is no time"),
        (["token", "alice", "--ttl", "0h"], "'0h' is no time"),
        (["token", "alice", "--ttl", "999999999d"], "is no time"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_2(run, arguments, said):
    answer = run(*arguments)
    assert answer.exit_code == 2, answer.output
    assert said in answer.stderr
    assert answer.stdout == ""
    assert not run.served
    assert list(Path().iterdir()) == []


def test_serve_hands_over_its_settings_and_gives_back_the_exit_code(run):
    Path("h.toml").write_text("rate_limit = 5\nnode_id = 9\n")
    answer = run("serve", "--port", "0", "--http-port", "0", "--data-dir", "d", "--log-format", "JSON",
                 "--rate-limit", "0", "--config", "h.toml", HONGYAN_NODE_ID="8")  # fmt: skip
    assert answer.exit_code == 7, answer.output
    (settings,) = run.served
    assert settings == Settings(
        port=0, http_port=0, data_dir=Path("d"), log_format="json", rate_limit=0, node_id=8
    )


def test_every_fault_has_its_line(run):
    answer = run("serve", "--port", "-5", HONGYAN_NODE_ID="x", HONGYAN_NONSENSE="1")
    assert answer.exit_code == 2
    lines = answer.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("hongyan serve: ") for line in lines)


def verify(token: str, data_dir: str, **settings: Any) -> str:
    return TokenVerifier(Settings(**settings), read_secret(Path(data_dir))).verify(token).user


def test_token_prints_one_a_line(run):
    answer = run("token", "alice", "bob", "--data-dir", "d", "--ttl", "15m")
    assert answer.exit_code == 0, answer.output
    assert [verify(line, "d") for line in answer.stdout.splitlines()] == ["alice", "bob"]
    assert "d is new" in answer.stderr
    again = run("token", "alice", "--data-dir", "d")
    assert again.stderr == ""
    assert verify(again.stdout.strip(), "d") == "alice"


def test_token_takes_audience_issuer_and_directory_from_the_servers_file(run):
    Path("h.toml").write_text('jwt_audience = "chat"\njwt_issuer = "me"\ndata_dir = "d"\n')
    answer = run("token", "alice", "--config", "h.toml")
    assert verify(answer.stdout.strip(), "d", jwt_audience="chat", jwt_issuer="me") == "alice"


def test_token_says_when_its_tokens_would_not_be_taken(run):
    Path("h.toml").write_text('jwt_algorithm = "EdDSA"\njwt_public_key = "k.pem"\n')
    answer = run("token", "alice", "--config", "h.toml")
    assert answer.exit_code == 2
    assert "jwt_public_key" in answer.stderr


def test_token_of_a_foreign_directory_is_an_error_not_a_traceback(run):
    Path("d").mkdir()
    Path("d/precious.txt").write_text("x")
    answer = run("token", "alice", "--data-dir", "d")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("hongyan token: ")
    assert "Traceback" not in answer.stderr
    assert [path.name for path in Path("d").iterdir()] == ["precious.txt"]


def test_chat_is_there(run):
    assert run("chat", "--help").exit_code == 0


def test_chat_keeps_its_device_whatever_the_state_directory_is_like(monkeypatch, tmp_path):
    from hongyan.cli.chat import _default_device

    def device(state: Path, user: str = "alice") -> str:
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        return _default_device(user, Path("d"), "ws://h/ws", interactive=True)

    first = device(tmp_path / "a")
    assert device(tmp_path / "a") == first
    assert first not in (device(tmp_path / "a", "bob"), device(tmp_path / "b"))
    assert [each.name for each in (tmp_path / "a/hongyan").iterdir()] == ["device"]
    (tmp_path / "a/hongyan/device").write_text("")
    assert first != device(tmp_path / "a") == device(tmp_path / "a")
    assert len({device(tmp_path / name) for name in ("a", "b", "c")}) == 3
    garbage = tmp_path / "garbage"
    (garbage / "hongyan").mkdir(parents=True)
    (garbage / "hongyan" / "device").write_bytes(b"\xff\xfe")
    assert device(garbage) == device(garbage)
    (tmp_path / "file").write_text("")
    assert device(tmp_path / "file") == device(tmp_path / "file")
