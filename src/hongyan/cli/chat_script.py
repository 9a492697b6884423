"""`hongyan chat` without a terminal: lines in, lines out.

Lines keep their order whatever happens: one unanswered send a conversation, paced below the server's rate.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
from typing import Any

from hongyan.cli.chat_login import at_terminal
from hongyan.cli.chat_text import shown, split_address, why_lost
from hongyan.client import Client, Message, RequestRefused, TooLarge
from hongyan.client.connection import TokenProvider

WINDOW = 64  # lines read ahead of their acks
MAX_LINE = 1 << 20  # bytes that are kept of a line; no server takes as many


class Script:
    """One run. `run` returns the exit code."""

    def __init__(
        self, url: str, token: str | TokenProvider, device: str, to: str | None, as_json: bool, listen: bool,
        wait: float | None, count: int | None, timeout: float,
    ) -> None:  # fmt: skip
        self._client = Client(url, token, device, platform="cli", in_order=True, window=WINDOW,
                              burst=100, connect_timeout=timeout)  # fmt: skip
        self._url = url
        self._to = to
        self._json = as_json
        self._listen, self._wait, self._count = listen, wait, count
        self._failed = False
        self._left = 0
        self._enough = asyncio.Event()
        self._room = asyncio.Semaphore(WINDOW)
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: the end

    async def run(self) -> int:
        """Raises ClientError."""
        _never_fail_on_text(self._json)
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, main.cancel)
        troubles = asyncio.create_task(self._tell_troubles())
        try:
            async with self._client:
                receiver = asyncio.create_task(self._receive())
                try:
                    await self._until(receiver, self._work())
                finally:
                    receiver.cancel()
                    await asyncio.gather(receiver, return_exceptions=True)
        except asyncio.CancelledError:  # Ctrl-C: leaving is no failure unless something was left behind
            return 1 if self._failed or self._left else 0
        except BrokenPipeError:
            sys.stdout = None  # nobody reads; do not complain at exit either
            return 1
        finally:
            troubles.cancel()
            await asyncio.gather(troubles, return_exceptions=True)
            if self._left:
                print(f"{self._left} not acknowledged; may not have arrived", file=sys.stderr, flush=True)
        return 1 if self._failed else 0

    async def _tell_troubles(self) -> None:
        """Once an outage, to standard error: who waits should know for what."""
        told = False
        async for event in self._client.events():
            if event.type == "connected":
                told = False
            elif event.type == "disconnected" and not told:
                told = True
                why = why_lost(event.data["code"], event.data["reason"])
                print(f"no connection to {self._url}: {why}; trying again", file=sys.stderr, flush=True)

    async def _until(self, receiver: asyncio.Task[None], work: Any) -> None:
        """`work`, unless the receiver fails first (kicked, replaced)."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, receiver), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                receiver.result()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as sends:
                await self._send_lines(sends)
        except BaseExceptionGroup as group:  # closed for good, or nobody reads our output any more
            raise group.exceptions[0] from None
        if self._count is None and not self._listen and self._wait is None:
            return
        try:
            async with asyncio.timeout(self._wait if self._count is not None or not self._listen else None):
                await self._enough.wait()
        except TimeoutError:
            self._failed = self._failed or self._count is not None

    async def _send_lines(self, sends: asyncio.TaskGroup) -> None:
        number = 0
        room = threading.Semaphore(WINDOW)
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read_lines, args=(loop, self._lines, room), daemon=True).start()
        while (line := await self._lines.get()) is not None:
            room.release()
            number += 1
            if len(line) > MAX_LINE:
                self._not_sent(number, "too_large", f"above {MAX_LINE} bytes")
                continue
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                self._not_sent(number, "malformed", f"not UTF-8 ({error.reason} at byte {error.start + 1})")
                continue
            if not text.strip():
                continue
            # With --to a line goes as it is, whatever it begins with: it may be a log's or a program's.
            to, text = (self._to, text) if self._to is not None else split_address(text)
            if to is None:
                self._not_sent(
                    number, "malformed", "it begins with no address (@bob hello), and there is no --to"
                )
                continue
            await self._room.acquire()
            sends.create_task(self._send(number, to, text))

    async def _send(self, line: int, to: str, text: str) -> None:
        try:
            ack = await self._client.send(to, text)
        except RequestRefused as error:
            self._not_sent(line, error.code, error.text, to=to, content=text)
        except TooLarge as error:
            self._not_sent(line, "too_large", str(error), to=to, content=text)
        except BaseException:  # interrupted, or the client is closed
            self._left += 1
            raise
        else:
            self._put({"event": "ack", "conversation": ack.conversation, "seq": ack.seq, "key": ack.key,
                       "message_id": ack.message_id, "timestamp": ack.timestamp, "duplicate": ack.duplicate,
                       "content": text}, None)  # fmt: skip
        finally:
            self._room.release()

    def _not_sent(self, line: int, code: str, text: str, **sent: str) -> None:
        self._failed = True
        where = f" to {sent['to']}" if sent else ""
        self._put({"event": "error", "line": line, "code": code, "text": text, **sent},
                  f"line {line} not sent{where}: {code}: {text}", error=True)  # fmt: skip

    async def _receive(self) -> None:
        received = 0
        async for message in self._client.messages():
            self._show(message)
            received += 1
            if received == self._count:  # the rest is not taken: it stays for the next run
                self._client.confirm()
                self._enough.set()
                if at_terminal():  # nobody at a keyboard thinks of ending it
                    self._lines.put_nowait(None)
                return

    def _show(self, message: Message) -> None:
        self._put(
            {"event": "message", "conversation": message.conversation, "from": message.sender,
             "seq": message.seq, "content_type": message.content_type, "content": message.content,
             "message_id": message.message_id, "timestamp": message.timestamp},
            f"{message.conversation} {message.sender}: {shown(message.content)}",
        )  # fmt: skip

    def _put(self, found: dict[str, Any], text: str | None, error: bool = False) -> None:
        if self._json:
            print(json.dumps(found, ensure_ascii=False), flush=True)
        elif text is not None:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)


def _never_fail_on_text(as_json: bool) -> None:
    """JSON is UTF-8 (RFC 8259 §8.1); people get what their locale cannot write spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8" if as_json else None, errors="backslashreplace")


def _read_lines(
    loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None], room: threading.Semaphore
) -> None:
    """In a thread of its own: standard input may be a file, which no event loop can wait for. Not through
    `sys.stdin`: the interpreter aborts at its end where a thread still waits in there."""

    def put(line: bytes) -> None:
        room.acquire()
        loop.call_soon_threadsafe(lines.put_nowait, line)

    rest = bytearray()
    try:
        while sys.stdin is not None and (chunk := os.read(sys.stdin.fileno(), 65536)):
            *whole, last = chunk.split(b"\n")
            for line in whole:
                put(bytes(rest) + line)
                rest.clear()
            rest += last
            del rest[MAX_LINE + 1 :]
        if rest:
            put(bytes(rest))
        loop.call_soon_threadsafe(lines.put_nowait, None)
    except RuntimeError:
        pass  # the loop has ended
