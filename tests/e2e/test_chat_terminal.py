"""`hongyan chat` as a person at a terminal sees it: a real process on a pseudo-terminal, beside a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest

from fake_server import FakeServer
from server_process import SOURCES, ServerProcess, free_port
from terminal import Terminal

pytestmark = pytest.mark.slow
Chat = Callable[..., Terminal]


@pytest.fixture
def chat(server: ServerProcess, tmp_path: Path) -> Iterator[Chat]:
    """`chat("alice", "--to", "@bob")` starts one; `shell=True`: typed into a bash with job control;
    `pipe`: what its output goes into; `variables`: more of its environment."""
    started: list[Terminal] = []

    def start(
        user: str, *arguments: str, url: str = server.url, shell: bool = False, pipe: str = "",
        **variables: str,
    ) -> Terminal:  # fmt: skip
        command = [sys.executable, "-m", "hongyan", "chat", "--user", user, "--url", url]
        command += ["--data-dir", str(server.data_dir), *arguments]
        env = {k: v for k, v in os.environ.items() if not k.startswith("HONGYAN_")}
        env |= {"PYTHONPATH": str(SOURCES), "XDG_STATE_HOME": str(tmp_path), "PS1": "shell> "} | variables
        terminal = Terminal(["bash", "--norc", "--noediting", "-i"] if shell else command, env)
        if shell:
            terminal.type(" ".join(command) + pipe + "\n")
        started.append(terminal)
        return terminal

    yield start
    for terminal in started:
        terminal.close()
        assert "Traceback" not in terminal.text
        assert "Press ENTER" not in terminal.text


@pytest.fixture
def alone(chat: Chat, name: Callable[[str], str]) -> Terminal:
    """One who talks to themselves, connected."""
    user = name("alice")
    terminal = chat(user, "--to", f"@{user}")
    settled(terminal, user)
    return terminal


def settled(terminal: Terminal, user: str) -> None:
    """Connected, and the prompt is there again: while a line is printed the keys are the terminal's own."""
    terminal.until("connected to ")
    terminal.until(f"@{user}>")


def test_two_people_talk(chat: Chat, name: Callable[[str], str]) -> None:
    alice, bob = name("alice"), name("bob")
    one, two = chat(alice, "--to", f"@{bob}"), chat(bob, "--to", f"@{alice}")
    for terminal in (one, two):
        terminal.until("connected to ")
    one.type("你好\u3000👨\u200d👩\r")
    one.until("✓")
    assert two.until("你好\u3000👨\u200d👩").endswith(f"{alice}: 你好\u3000👨\u200d👩")
    two.type(f"@{alice} #1\r/say @{alice} is you\r/say /help\r")
    for text in ("#1", f"@{alice} is you", "/help"):
        one.until(f"{bob}: {text}")
    for terminal in (one, two):
        terminal.type("/quit\r")
        assert terminal.ended() == 0
        assert terminal.sane()


def test_history_goes_on_beyond_a_page(chat: Chat, server: ServerProcess, name: Callable[[str], str]) -> None:
    user = name("alice")
    command = [
        sys.executable,
        "-m",
        "hongyan",
        "chat",
        "--user",
        user,
        "--to",
        f"@{user}",
        "--url",
        server.url,
    ]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCES)}
    lines = "".join(f"line-{n}\n" for n in range(1, 611))
    said = subprocess.run(
        [*command, "--data-dir", str(server.data_dir)], input=lines, text=True, env=env, timeout=60
    )
    assert said.returncode == 0
    terminal = chat(user, "--to", f"@{user}")
    settled(terminal, user)
    terminal.type("/history 605\r")
    terminal.until("line-6")
    terminal.until("line-610")
    terminal.until("there are older ones: /history 1210 shows more")
    terminal.type("/history 1210\r")
    terminal.until("line-1")
    terminal.until("line-610")
    terminal.type("/history x\r")
    terminal.until("a number from 1 on")


@pytest.mark.parametrize("no_cpr", ["0", "1"], ids=["asks where the cursor is", "does not ask"])
async def test_a_message_is_acknowledged_once_it_is_on_the_terminal(chat: Chat, no_cpr: str) -> None:
    """Also on a terminal that does not answer where the cursor is."""
    async with FakeServer() as server:
        token = jwt.encode({"sub": "alice"}, "k" * 32)
        server.good_tokens = {token}
        for n in range(1, 4):
            server.store("@bob", f"missed {n}")
        terminal = chat("alice", "--token", token, url=server.url, PROMPT_TOOLKIT_NO_CPR=no_cpr)
        await acknowledged_and_shown(server, terminal, ["missed 1", "missed 2", "missed 3"])
        for n in range(1, 4):
            await server.say("@bob", f"news {n}")
        await acknowledged_and_shown(server, terminal, ["news 1", "news 2", "news 3"])


async def acknowledged_and_shown(server: FakeServer, terminal: Terminal, contents: list[str]) -> None:
    """Until the conversation's last message, the last of `contents`, is acknowledged."""
    first = len(server.log["@bob"]) - len(contents)

    def acknowledged() -> int:
        return max((data["acks"]["@bob"] for data in server.of("ack")), default=0)

    seen = first
    while seen < first + len(contents):
        await server.until(lambda: acknowledged() > seen)  # noqa: B023
        seen = acknowledged()
        shown = terminal.so_far()
        assert [each for each in contents[: seen - first] if shown.count(f"bob: {each}") != 1] == []


@pytest.mark.parametrize(
    "typed",
    [
        "in \x1b[31mred",
        "\x1b[<999;1;1Min red",
        "\x1b[200~in \x1b[31mred\x1b[201~",
        "\x16\x1b[31min red",
        "in\x1b[99;99;99M red",
    ],
    ids=["typed", "mouse", "pasted", "quoted", "old mouse"],
)
def test_escape_sequences_in_the_input(alone: Terminal, typed: str) -> None:
    alone.type(typed + "\r")
    shown = alone.until("✓") + alone.until("red")
    assert "\\x1b" not in shown
    alone.type("\x03")
    assert alone.ended() == 0
    assert alone.sane()


def test_what_is_not_utf8_is_refused(alone: Terminal) -> None:
    alone.type(b"ab\xffcd\r")
    alone.until("not UTF-8: not sent")
    alone.type("fine\r")
    alone.until("fine")
    alone.until("✓")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(alone: Terminal, number: int) -> None:
    assert not alone.sane()
    alone.type("half a line")
    alone.until("half a line")
    alone.process.send_signal(number)
    assert alone.ended() == 0
    assert alone.sane()


def test_a_signal_at_the_password_prompt_leaves_the_terminal_as_it_was(chat: Chat, tmp_path: Path) -> None:
    terminal = chat("alice", "--data-dir", str(tmp_path / "none"))
    terminal.until("Password of alice: ")
    assert not terminal.sane()
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ended()
    assert terminal.sane()


def test_a_closed_window_ends_it(alone: Terminal) -> None:
    alone.hang_up()
    assert alone.process.wait(15) is not None


def test_ctrl_z_suspends_and_comes_back(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    terminal = chat(user, "--to", f"@{user}", shell=True)
    settled(terminal, user)
    terminal.type("half")
    terminal.until("half")
    terminal.type("\x1a")
    terminal.until("Stopped")
    terminal.until("shell> ")
    assert terminal.sane()
    terminal.type("fg\n")
    terminal.until("half")
    terminal.type(" and whole\r")
    terminal.until("✓")
    terminal.until("half and whole")
    terminal.type("\x04")
    terminal.until("shell> ")
    assert terminal.sane()


def test_what_was_typed_and_never_sent_is_said(chat: Chat) -> None:
    terminal = chat("alice", "--to", "@bob", url=f"ws://127.0.0.1:{free_port()}/ws")
    terminal.until("trying again")
    terminal.type("hello?\r")
    terminal.until("@bob> hello?")
    assert terminal.leave() == 1
    assert "1 not acknowledged" in terminal.text
    assert terminal.sane()


def test_a_script_at_a_terminal_leaves_after_its_count(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    sender = chat(user, "--to", f"@{user}", "--device", "other")
    settled(sender, user)
    terminal = chat(user, "--to", f"@{user}", "--count", "1")
    terminal.type("hello\n")
    # So the script is logged in: a new device is told only what comes after that.
    sender.until(f"{user}: hello")
    sender.type("back\r")
    terminal.until(f"@{user} {user}: back")
    assert terminal.ended() == 0
    assert terminal.sane()


def test_a_script_beside_a_terminal_is_a_device_of_its_own(chat: Chat, name: Callable[[str], str]) -> None:
    user = name("alice")
    alone = chat(user, "--to", f"@{user}")
    settled(alone, user)
    for line in ("the backup is done", "again"):
        script = chat(user, "--to", f"@{user}", shell=True, pipe=f" <<< '{line}'; echo left $?")
        script.until("left 0")
        alone.until(f"{user}: {line}")
    alone.type("thanks\r")
    alone.until("✓")
    assert alone.leave() == 0


def test_a_replaced_device_says_what_may_not_have_arrived(
    chat: Chat, server_factory: Callable[..., ServerProcess]
) -> None:
    server = server_factory()
    first = chat("alice", "--to", "@alice", "--data-dir", str(server.data_dir), url=server.url)
    settled(first, "alice")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    second = chat("alice", "--to", "@alice", "--data-dir", str(server.data_dir), url=server.url)
    first.type("into the void\r")
    first.until("into the void")
    second.until("/help")
    server.process.send_signal(signal.SIGCONT)
    second.until("connected to ")
    assert first.ended() == 1
    assert "Error: the same device logged in elsewhere" in first.text
    assert ("@alice not acknowledged" in first.text) != ("✓ @alice" in first.text)
    assert first.sane()


def test_ctrl_c_leaves_from_a_command_that_waits(
    chat: Chat, server_factory: Callable[..., ServerProcess]
) -> None:
    server = server_factory()
    terminal = chat("alice", "--to", "@alice", "--data-dir", str(server.data_dir), url=server.url)
    settled(terminal, "alice")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        terminal.type("into the void\r/who\r")
        terminal.until_sane()  # the editor has given the keys back
        terminal.type("\x03")
        assert terminal.ended() == 1
        assert "1 not acknowledged" in terminal.text
        assert terminal.sane()
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_wrong_password_is_said_in_words(
    chat: Chat, server: ServerProcess, name: Callable[[str], str], tmp_path: Path
) -> None:
    terminal = chat(name("alice"), "--data-dir", str(tmp_path / "none"), "--http-url", server.http)
    terminal.until("Password of ")
    terminal.type("wrong horse\n")
    assert terminal.ended() == 1
    assert "Error: login refused: bad_token (wrong password or unknown user)\n" in terminal.text
    assert "wrong horse" not in terminal.text
    assert terminal.sane()


def test_output_in_a_pipe_is_a_scripts(chat: Chat, name: Callable[[str], str], tmp_path: Path) -> None:
    user = name("alice")
    terminal = chat(user, "--to", f"@{user}", shell=True, pipe=f" | tee {tmp_path}/log; echo left $?")
    other = chat(user, "--to", f"@{user}", "--device", "other")
    settled(other, user)
    other.type("hello\r")
    terminal.until(f"@{user} {user}: hello")
    terminal.type("back\n")
    other.until("back")
    terminal.type("\x04")
    terminal.until("left 0")
    assert (tmp_path / "log").read_text() == f"@{user} {user}: hello\n"
