"""A program at a terminal, as the person in front of it sees it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>78]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """`command` in a session of its own on a new pseudo-terminal. `until` reads what it shows."""

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.master, slave = os.openpty()
        self._slave = slave  # kept: modes can be asked for after the program has ended
        self.resize(100, 30)
        # Nobody answers here when the program asks where the cursor is: unless `env` says otherwise, it does not.
        env = {"PROMPT_TOOLKIT_NO_CPR": "1"} | env | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._raw = b""
        self.text = ""
        self._read = 0

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def until(self, expected: str, timeout: float = 15) -> str:
        """What is shown from where the last `until` ended up to `expected`, without escape sequences."""
        deadline = time.monotonic() + timeout
        while (at := self.text.find(expected, self._read)) < 0:
            if not self._more(deadline - time.monotonic()):
                raise AssertionError(f"no {expected!r} in {self.text[self._read :]!r}")
        shown, self._read = self.text[self._read : at + len(expected)], at + len(expected)
        return shown

    def so_far(self) -> str:
        """All that it has shown until now, without waiting for more."""
        while self._more(0.001):
            pass
        return self.text

    def leave(self) -> int:
        """Ctrl-D, again where it came while a line was being printed (the terminal is the kernel's then)."""
        return self.ended(again="\x04")

    def ended(self, timeout: float = 20, again: str = "") -> int:
        """The exit code; `text` then has everything that was shown. `again`: typed each second until then."""
        deadline, due = time.monotonic() + timeout, time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it goes on: {self.text[-2000:]!r}")
            if again and time.monotonic() >= due:
                due += 1
                self.type(again)
            self._more(0.05)
        while self._more(0.05):
            pass
        return self.process.returncode

    def sane(self) -> bool:
        """Whether it echoes and takes lines, as a shell's user expects."""
        modes = termios.tcgetattr(self._slave)
        wanted = termios.ECHO | termios.ICANON | termios.ISIG
        return modes[3] & wanted == wanted and bool(modes[0] & termios.ICRNL and modes[1] & termios.OPOST)

    def until_sane(self, timeout: float = 15) -> None:
        deadline = time.monotonic() + timeout
        while not self.sane():
            assert time.monotonic() < deadline, self.text
            self._more(0.02)

    def hang_up(self) -> None:
        """The window is closed."""
        os.close(self._slave)
        os.close(self.master)
        self.master = self._slave = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            self.hang_up()

    def _more(self, timeout: float) -> bool:
        if timeout <= 0 or not select.select([self.master], [], [], timeout)[0]:
            return False
        self._raw += os.read(self.master, 65536)
        self.text = _SEQUENCE.sub("", self._raw.decode(errors="replace"))
        return True
