"""`hongyan chat` at a terminal: a line to type in, everything else above it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.patch_stdout import patch_stdout

from hongyan.cli.chat_text import cleaned, shown, split_address, why_lost
from hongyan.client import Client, ClientError, Closed, Event, Message
from hongyan.client.connection import TokenProvider
from hongyan.protocol.names import is_group_address, is_user_address

HELP = """\
  hello              say it to the one you talk to
  @bob hello         say it to @bob (or #team hello), and go on talking there
  /to @bob           talk to @bob from now on
  /say #1 is mine    say it as it is, though it begins with / or an address
  /create #team [name]   /join #team   /leave [#team]   /invite @bob [#team]
  /history [n]       the last n messages here (default 20)
  /who               who is online of those here
  /help   /quit      (Ctrl-D and Ctrl-C leave as well; Ctrl-Z suspends)"""
DIM, BOLD, CYAN, RED = "2", "1", "36", "31"


class Prompt:
    """One run. `run` returns the exit code."""

    def __init__(self, url: str, token: str | TokenProvider, device: str, to: str | None) -> None:
        # People wait and see; they leave when they like (no connect_timeout).
        self._client = Client(url, token, device, platform="cli", in_order=True, connect_timeout=None)
        self._url = url
        self._to = to
        # Where the cursor is, the editor need not know; a terminal that does not answer would hold it up.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._editor: PromptSession[str] = PromptSession(key_bindings=_keys(), enable_suspend=True)
        self._colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._sending: set[asyncio.Task[None]] = set()
        self._met: dict[str, None] = {}
        self._commands: dict[str, Callable[[list[str]], Awaitable[None]]] = {
            "to": self._talk_to, "create": self._create, "join": self._join, "leave": self._leave,
            "invite": self._invite, "history": self._history, "who": self._who, "help": self._help,
        }  # fmt: skip

    async def run(self) -> int:
        """Raises Closed when the server ends the session for good. Leaves the terminal as it was."""
        loop = asyncio.get_running_loop()
        with patch_stdout(raw=True):  # for what is not ours: a warning, a library's line
            loop.set_exception_handler(self._fault)
            typing = asyncio.create_task(self._type())
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, typing.cancel)
            talking = asyncio.create_task(self._talk())
            try:
                await asyncio.wait((typing, talking), return_when=asyncio.FIRST_COMPLETED)
                if talking.done():
                    talking.result()
                if typing.done() and not typing.cancelled():
                    typing.result()
                if self._sending and self._client.connected:
                    await asyncio.wait(self._sending, timeout=3)
                if self._sending:
                    self._say(f"{len(self._sending)} not acknowledged; may not have arrived", RED)
                return 1 if self._sending else 0
            finally:
                tasks = (typing, talking, *self._sending)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self) -> None:
        """Until the server ends the session for good."""
        events = asyncio.create_task(self._events())
        try:
            async with self._client:
                await self._messages()
        finally:
            events.cancel()
            await asyncio.gather(events, return_exceptions=True)

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A key that the line editor does not understand, or a bug: a line about it, and chat goes on."""
        self._say(f"a fault of chat's own: {context.get('exception') or context['message']!r}", RED)

    # the three sources

    def _prompt(self) -> str:
        return f"{self._to or '(nobody: /to @bob)'}> "

    async def _type(self) -> None:
        self._say("/help shows what you can type", DIM)
        while True:
            try:
                typed = await self._editor.prompt_async(
                    self._prompt, set_exception_handler=False, handle_sigint=False
                )
            except (EOFError, KeyboardInterrupt):
                return
            try:
                line = cleaned(typed)
            except ValueError as error:
                self._say(str(error), RED)
                continue
            if line in ("/quit", "/exit", "/q"):
                return
            command, _, rest = line.partition(" ")
            if command == "/say":
                self._post(self._to, rest.strip())
            elif command.startswith("/"):
                await self._command(line)
            else:
                to, text = split_address(line)
                self._post(to or self._to, text)

    async def _messages(self) -> None:
        async for message in self._client.messages():
            self._met[message.conversation] = None
            self._show(message)

    async def _events(self) -> None:
        async for event in self._client.events():
            self._event(event)

    # what is typed

    def _post(self, to: str | None, text: str) -> None:
        if not text:
            return
        if to is None:
            self._say("whom to? /to @bob, or: @bob hello", RED)
            return
        if len(self._sending) >= 1000:
            self._say("1,000 messages wait for the server already: this one was not sent", RED)
            return
        self._to = to
        task = asyncio.create_task(self._send(to, text))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, to: str, text: str) -> None:
        try:
            ack = await self._client.send(to, text)
            self._say(f"✓ {to} #{ack.seq}  {shown(text)}", DIM)
        except Closed:  # why, is told at the end
            self._say(f"✗ {to} not acknowledged; may not have arrived: {shown(text)}", RED)
        except ClientError as error:
            self._say(f"✗ not sent to {to}: {error}", RED)

    async def _command(self, line: str) -> None:
        name, *words = line[1:].split()
        action = self._commands.get(name) if name else None
        if action is None:
            self._say(f"no such command: /{name}; /help shows them", RED)
            return
        if name not in ("to", "help") and not self._client.connected:
            self._say(f"/{name} needs the server, and there is no connection just now", RED)
            return
        try:
            await action(words)
        except Closed:
            pass
        except (ClientError, ValueError) as error:
            self._say(str(error), RED)

    async def _talk_to(self, words: list[str]) -> None:
        self._to = _address(words, None, "/to @bob or /to #team")

    async def _create(self, words: list[str]) -> None:
        group = _group(words, None, "/create #team [name]")
        answer = await self._client.create_group(group, " ".join(words[1:]))
        self._to = group
        self._say(f"{group} is yours ({answer['members']} in it)", DIM)

    async def _join(self, words: list[str]) -> None:
        group = _group(words, None, "/join #team")
        answer = await self._client.join_group(group)
        self._to = group
        self._say(f"joined {group} ({answer['members']} in it)", DIM)

    async def _leave(self, words: list[str]) -> None:
        group = _group(words, self._to, "/leave #team")
        await self._client.leave_group(group)
        self._to = None if self._to == group else self._to
        self._say(f"left {group}", DIM)

    async def _invite(self, words: list[str]) -> None:
        users = [word for word in words if is_user_address(word)]
        group = _group([word for word in words if is_group_address(word)], self._to, "/invite @bob #team")
        if not users:
            raise ValueError("/invite @bob [#team]")
        await self._client.invite(group, users)
        self._say(f"invited {' '.join(users)} to {group}", DIM)

    async def _history(self, words: list[str]) -> None:
        if words and not (words[0].isdecimal() and int(words[0])):
            raise ValueError("/history [n], a number from 1 on")
        count = int(words[0]) if words else 20
        if self._to is None:
            raise ValueError("history of whom? /to @bob first")
        messages: list[Message] = []
        more = True
        while more and len(messages) < count:
            before = messages[0].seq if messages else None
            limit = min(count - len(messages), 500)
            page, more = await self._client.history(self._to, before=before, limit=limit)
            if not page:
                break
            messages = page + messages
        for message in messages:
            self._show(message, DIM)
        if more:
            self._say(f"there are older ones: /history {2 * count} shows more", DIM)
        elif not messages:
            self._say("nothing yet", DIM)

    async def _who(self, words: list[str]) -> None:
        users = [address for address in (self._to, *self._met) if address and address[0] == "@"]
        if self._to is not None and self._to[0] == "#":
            messages, _ = await self._client.history(self._to, limit=200)
            users += [f"@{message.sender}" for message in messages]
        states = await self._client.presence(list(dict.fromkeys(users))[:100]) if users else {}
        for address, state in states.items():
            self._say(f"{address} {_presence(state['online'], state['last_seen'])}", DIM)
        if not states:
            self._say("nobody met yet", DIM)

    async def _help(self, words: list[str]) -> None:
        self._say(HELP, DIM)

    # what is shown

    def _event(self, event: Event) -> None:
        data = event.data
        if event.type == "connected":
            self._say(f"connected to {self._url} as {data['user_id']}", DIM)
        elif event.type == "disconnected":
            why = why_lost(data["code"], data["reason"])
            self._say(f"not connected ({why}); trying again in {data['retry_in_s']:.1f} s", RED)
        elif event.type == "group_event":
            self._say(f"{data['group']}: {data['user']} {data['event']}", DIM)
        elif event.type == "presence":
            for address, state in data["states"].items():
                self._say(f"{address} {_presence(state['online'], state['last_seen'])}", DIM)

    def _show(self, message: Message, colour: str = "") -> None:
        at = time.strftime("%H:%M", time.localtime(message.timestamp / 1000))
        place = "" if message.conversation == f"@{message.sender}" else f" {message.conversation}"
        text = (
            shown(message.content) if message.content_type == "text" else f"[{shown(message.content_type)}]"
        )
        self._say(f"{self._paint(at, DIM)} {self._paint(message.sender + place, BOLD)}: {text}", colour)

    def _say(self, text: str, colour: str = "") -> None:
        """Above the line that is typed in; written when it returns. `print` would only queue it, and a
        message would count as shown before it is."""
        editor, output = self._editor.app, self._editor.output
        if editor.is_running:
            editor.renderer.erase()
        output.write_raw(self._paint(text, colour) + "\n")
        output.flush()
        editor.invalidate()

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._colours else text


def _keys() -> KeyBindings:
    """`ESC [31m`, typed or pasted, looks like a mouse to the line editor, and it fails on that."""
    keys = KeyBindings()
    keys.add(Keys.Vt100MouseEvent)(lambda event: None)
    return keys


def _presence(online: bool, last_seen: int | None) -> str:
    if online:
        return "online"
    if last_seen is None:
        return "offline"
    return f"last seen {time.strftime('%Y-%m-%d %H:%M', time.localtime(last_seen / 1000))}"


def _address(words: list[str], otherwise: str | None, usage: str) -> str:
    found = words[0] if words else otherwise
    if found is None or not (is_user_address(found) or is_group_address(found)):
        raise ValueError(f"usage: {usage}")
    return found


def _group(words: list[str], otherwise: str | None, usage: str) -> str:
    found = _address(words, otherwise, usage)
    if found[0] != "#":
        raise ValueError(f"usage: {usage}")
    return found
