"""`hongyan chat` as a script sees it: a real process on a pipe, beside a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server_process import SOURCES, ServerProcess, free_port

pytestmark = pytest.mark.slow
CLIENT_MD = Path(__file__).parents[2] / "docs/api/client.md"
Chat = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def chat(server: ServerProcess, tmp_path: Path) -> Iterator[Chat]:
    """`chat("--user", "alice", …)` starts one with a pipe for its input, beside the module's server."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, url: str = server.url, env: dict[str, str] | None = None, **popen: Any) -> Any:
        command = [sys.executable, "-m", "hongyan", "chat", "--url", url, "--data-dir", str(server.data_dir)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HONGYAN_")}
        clean |= {"PYTHONPATH": str(SOURCES), "XDG_STATE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen
        process = subprocess.Popen([*command, *arguments], env=clean | (env or {}), **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[bytes], typed: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines of its output, its standard error."""
    out, err = process.communicate(typed, timeout=60)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


def test_who_was_away_gets_all_once_and_in_order(chat: Chat, name: Callable[[str], str]) -> None:
    alice, bob = name("alice"), name("bob")
    assert said(chat("--user", bob, "--json"))[0] == 0
    lines = [f"line {n} é" for n in range(300)]
    code, acks, err = said(chat("--user", alice, "--to", f"@{bob}", "--json"), "\n".join(lines).encode())
    assert code == 0, err
    assert [(ack["event"], ack["content"]) for ack in acks] == [("ack", line) for line in lines]
    code, found, err = said(chat("--user", bob, "--count", "300", "--json"))
    assert code == 0, err
    assert [message["content"] for message in found] == lines
    assert [message["seq"] for message in found] == list(range(1, 301))
    assert said(chat("--user", bob, "--wait", "0.3", "--json"))[1] == []


def test_a_backlog_taken_in_portions_is_complete(chat: Chat, name: Callable[[str], str]) -> None:
    alice, bob = name("alice"), name("bob")
    assert said(chat("--user", bob, "--json"))[0] == 0
    lines = [str(n) for n in range(1, 11)]
    assert said(chat("--user", alice, "--to", f"@{bob}"), "\n".join(lines).encode())[0] == 0
    for portion in (["1", "2", "3"], ["4", "5"], ["6", "7", "8", "9", "10"]):
        code, found, err = said(chat("--user", bob, "--count", str(len(portion)), "--json"))
        assert code == 0, err
        assert [message["content"] for message in found] == portion


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_its_input_is_open(
    chat: Chat, name: Callable[[str], str], number: int
) -> None:
    user = name("alice")
    process = chat("--user", user, "--to", f"@{user}", "--json")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "ack"
    process.send_signal(number)
    assert process.wait(15) == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_a_replaced_device_ends_with_a_reason(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    first = chat("--user", user, "--to", f"@{user}", "--json", "--device", "same")
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(b"hello\n")
    first.stdin.flush()
    first.stdout.readline()
    assert said(chat("--user", user, "--json", "--device", "same"))[0] == 0
    assert first.wait(15) == 1
    assert first.stderr is not None
    assert b"Error: " in first.stderr.read()


def test_a_line_that_is_not_utf8_is_named_and_not_sent(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    code, found, err = said(chat("--user", user, "--to", f"@{user}", "--json"), b"one\n\xff two\nthree")
    assert code == 1
    assert [each["content"] for each in found if each["event"] == "ack"] == ["one", "three"]
    (fault,) = [each for each in found if each["event"] == "error"]
    assert (fault["line"], fault["code"]) == (2, "malformed")
    code, found, err = said(chat("--user", user, "--to", f"@{user}"), b"\xff")
    assert (code, found) == (1, [])
    assert "line 1 not sent: malformed: not UTF-8" in err


def test_with_to_lines_go_as_they_are(chat: Chat, name: Callable[[str], str]) -> None:
    alice, bob = name("alice"), name("bob")
    assert said(chat("--user", bob, "--json"))[0] == 0
    lines = ["#include <stdio.h>", f"@{alice} psst", "  indented ", "/quit", "\ttabs\x1b[31m", "@alone"]
    code, found, err = said(chat("--user", alice, "--to", f"@{bob}", "--json"), "\n".join(lines).encode())
    assert code == 0, err
    assert [(each["conversation"], each["content"]) for each in found] == [(f"@{bob}", one) for one in lines]


def test_without_to_a_line_names_its_address_or_is_an_error_of_its_own(
    chat: Chat, name: Callable[[str], str]
) -> None:
    alice, bob = name("alice"), name("bob")
    assert said(chat("--user", bob, "--json"))[0] == 0
    typed = f"@{bob} one\nto nobody\n@{bob}\n@{bob}  two\n".encode()
    code, found, err = said(chat("--user", alice, "--json"), typed)
    assert code == 1, err
    acks = [(each["conversation"], each["content"]) for each in found if each["event"] == "ack"]
    assert acks == [(f"@{bob}", "one"), (f"@{bob}", " two")]
    faults = [each for each in found if each["event"] == "error"]
    assert [(each["line"], each["code"]) for each in faults] == [(2, "malformed"), (3, "malformed")]
    code, _, err = said(chat("--user", alice), b"to nobody\n")
    assert code == 1
    assert "line 1" in err and "--to" in err


def documented_events() -> dict[str, tuple[str, str]]:
    """Of each `--json` event in docs/api/client.md: the fields it always has, and those it may have."""
    rows = re.findall(r"^\| `(message|ack|error)` \| (.+) \|$", CLIENT_MD.read_text(), re.MULTILINE)
    return {event: tuple(f"{fields}, and ".split(", and ")[:2]) for event, fields in rows}  # type: ignore[misc]


def test_json_events_are_what_the_documentation_says(chat: Chat, name: Callable[[str], str]) -> None:
    user, nobody = name("alice"), name("nobody")
    typed = f"@{user} fine\nno address\n@{nobody} hello\n".encode() + b"\xff\n@%s " % user.encode()
    code, found, err = said(chat("--user", user, "--json"), typed + b"x" * 70_000)
    assert code == 1, err
    _, received, _ = said(chat("--user", user, "--json", "--device", "new"))
    assert received == []  # a second device starts where the first one is
    said(chat("--user", user, "--to", f"@{user}", "--json"), b"once more")
    _, received, _ = said(chat("--user", user, "--json", "--count", "1", "--device", "new"))
    errors = [each for each in found if each["event"] == "error"]
    assert sorted((each["line"], each["code"]) for each in errors) == [
        (2, "malformed"), (3, "unknown_user"), (4, "malformed"), (5, "too_large"),
    ]  # fmt: skip
    documented = documented_events()
    seen = {each["event"]: each for each in (*found, *received)}
    assert seen.keys() == documented.keys()
    for each in (*found, *received):
        always, sometimes = (set(re.findall("`(\\w+)`", part)) for part in documented[each["event"]])
        assert each.keys() - {"event"} in (always, always | sometimes)


@pytest.mark.parametrize("variable", [False, True])
def test_anothers_token_is_refused(
    chat: Chat, server: ServerProcess, name: Callable[[str], str], variable: bool
) -> None:
    alice, carol = name("alice"), name("carol")
    for token, why in ((server.token(carol), carol), ("nonsense", "no JWT")):
        where = {"env": {"HONGYAN_TOKEN": token}} if variable else {}
        flags = () if variable else ("--token", token)
        code, found, err = said(chat("--user", alice, "--to", f"@{alice}", *flags, **where), b"in my name\n")
        assert (code, found) == (2, [])
        assert ("HONGYAN_TOKEN" if variable else "--token") in err
        assert why in err
        assert token not in err


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1", "notaurl", "ws://", "ws://127.0.0.1:99999/ws", "ws://127.0.0.1:x/ws", "ws://[/"],
)
def test_a_wrong_url_is_named(chat: Chat, tmp_path: Path, url: str) -> None:
    code, _, err = said(chat("--user", "alice", "--data-dir", str(tmp_path / "none"), url=url))
    assert code == 2
    assert "--url" in err
    assert url in err


def test_it_says_that_it_tries_again(chat: Chat) -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    began = time.monotonic()
    process = chat("--user", "alice", "--timeout", "20", url=url)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert time.monotonic() - began < 20  # said while it tries, not at the end
    assert url in line
    assert "trying again" in line
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 0


def test_beside_a_server_with_an_audience_it_takes_the_servers_config(
    chat: Chat, server_factory: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = server_factory(jwt_audience="chat", jwt_issuer="me")
    here = ("--user", "alice", "--to", "@alice", "--json", "--data-dir", str(server.data_dir))
    config = str(server.root / "hongyan.toml")
    settings = {"HONGYAN_JWT_AUDIENCE": "chat", "HONGYAN_JWT_ISSUER": "me"}
    assert said(chat(*here, "--config", config, url=server.url), b"hello")[0] == 0
    assert said(chat(*here, url=server.url, env=settings), b"hello")[0] == 0
    began = time.monotonic()
    for token, advice in (((), "--config"), (("--token", server.token("alice")), "hongyan token alice")):
        code, found, err = said(chat(*here, *token, url=server.url), b"hello")
        assert (code, found) == (1, [])
        last = err.splitlines()[-1]
        assert "bad_token" in last
        assert advice in last
    assert time.monotonic() - began < 20  # said when the server says so, not when --timeout is over
    code, _, err = said(chat(*here, "--config", str(tmp_path / "gone.toml"), url=server.url))
    assert (code, err) == (2, f"hongyan chat: --config {tmp_path}/gone.toml: No such file or directory\n")
    nonsense = {"HONGYAN_JWT_ALGORITHM": "none"}
    code, _, err = said(chat(*here, url=server.url, env=nonsense))
    assert code == 2
    assert err.startswith("hongyan chat: HONGYAN_JWT_ALGORITHM: ")
    # With a token given the server's settings are nobody's business here.
    sound = server.token("alice", aud="chat", iss="me")
    assert said(chat(*here, "--token", sound, url=server.url, env=nonsense), b"hello")[0] == 0


def test_a_line_without_an_end_takes_no_memory(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    process = chat("--user", user, "--to", f"@{user}", "--json")
    assert process.stdin is not None
    for _ in range(128):
        process.stdin.write(bytes(1 << 20))
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak < 128 * 1024  # KiB
    code, found, err = said(process, b"\nshort\n")
    assert code == 1, err
    assert [(each["event"], each.get("line")) for each in found] == [("error", 1), ("ack", None)]
    assert found[0]["code"] == "too_large"


def test_a_locale_without_such_letters_is_no_reason_to_fail(chat: Chat, name: Callable[[str], str]) -> None:
    user, ascii_only = name("alice"), {"PYTHONIOENCODING": "ascii"}
    sender = ("--user", user, "--to", f"@{user}", "--device", "sender", "--json")
    assert said(chat("--user", user, "--json"))[0] == 0
    _, found, _ = said(chat(*sender, env=ascii_only), "世界".encode())
    assert [each["content"] for each in found] == ["世界"]
    process = chat("--user", user, "--count", "1", env=ascii_only)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"@{user} {user}: \\u4e16\\u754c\n".encode(), b"")


@pytest.mark.parametrize("server_is", ["stopped", "killed"])
def test_lines_without_an_ack_are_counted_at_the_end(
    chat: Chat, server_factory: Callable[..., ServerProcess], server_is: str
) -> None:
    server = server_factory()
    assert server.process is not None
    process = chat(
        "--user",
        "a",
        "--to",
        "@a",
        "--json",
        "--device",
        "d",
        "--data-dir",
        str(server.data_dir),
        url=server.url,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "ack"
    server.process.send_signal(signal.SIGSTOP)
    process.stdin.write(b"two\nthree\n")
    process.stdin.flush()
    time.sleep(0.5)  # until they are read: nothing can be seen of that from here
    if server_is == "killed":
        server.kill()
    process.send_signal(signal.SIGTERM)
    code, found, err = said(process)
    assert (code, found) == (1, []), err
    assert "2 not acknowledged; may not have arrived" in err
