"""The data directory: whose it is, who has it open, and the secret kept in it.

    LOCK      flock of the server that has the directory open; its pid inside
    format    version, identity and time of creation: the mark of a directory that is ours
    secret    the key that signs tokens (mode 0600)
    clock     the Snowflake mark: ids below this millisecond may have been issued
    journal.db, store/

Others get nothing of it: directories are made with mode 0700, files with 0600 (the server's umask is 077).

Files appear whole: written under a temporary name, fsynced, then linked into place, so of two processes
that create one at the same time both go on with the same content.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hongyan.errors import DataDirectoryError

FORMAT = 1
SECRET_BYTES = 32
_LOCK, _FORMAT, _SECRET, _JOURNAL = "LOCK", "format", "secret", "journal.db"
_MARK_CHECK = 0xA5A5_A5A5_5A5A_5A5A  # tells a clock mark from zeros or foreign bytes
_TEMPORARY = ".hongyan-"
_LEFTOVER_S = 3600
_OTHERS = 0o077
# What a directory may hold and still count as empty: our own first steps, and a fresh ext4's folder.
_HARMLESS = {_LOCK, "lost+found"}


class _Format(msgspec.Struct):
    version: int
    created: int = 0  # ms since the Unix epoch
    identity: str = ""


class DataDirectory:
    """An open data directory, locked until `close` or the end of the process."""

    def __init__(self, path: Path, lock: int, identity: str) -> None:
        self.path = path
        self.identity = identity
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Lock the directory, creating it (mode 0700) where absent. Blocking.

        Raises DataDirectoryError: in use, foreign, damaged, of a newer version, or not accessible.
        Nothing that was there is changed then.
        """
        with _explained(path):
            _create(path)
            _check_ours(path)
            lock = _take_lock(path)
            try:
                identity = _mark(path)
                _remove_leftovers(path)
            except BaseException:
                os.close(lock)
                raise
        return cls(path, lock, identity)

    def secret(self) -> bytes:
        """The key that signs tokens, created at the first call, which comes before the journal's creation.
        Raises DataDirectoryError."""
        with _explained(self.path):
            return _secret(self.path)

    def open_to_others(self) -> list[str]:
        """What other users of the machine can read or write: files and folders of the directory, where they
        get into it at all."""
        if not stat.S_IMODE(self.path.stat().st_mode) & _OTHERS:
            return []
        names = (_JOURNAL, _JOURNAL + "-wal", _SECRET, "store")
        found = [self.path / name for name in names if (self.path / name).exists()]
        return [entry.name for entry in found if stat.S_IMODE(entry.stat().st_mode) & _OTHERS]

    @property
    def journal_path(self) -> Path:
        return self.path / _JOURNAL

    @property
    def store_path(self) -> Path:
        return self.path / "store"

    @property
    def mark_path(self) -> Path:
        return self.path / "clock"

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def read_secret(path: Path) -> bytes:
    """The secret of the data directory `path`, without its lock (`hongyan token` beside a server).

    Where no server has ever started, directory and secret are created as it would.
    Raises DataDirectoryError.
    """
    with _explained(path):
        _create(path)
        _check_ours(path)
        _mark(path)
        return _secret(path)


class ClockMark:
    """A millisecond, written ahead of the ids handed out (`Snowflake.extend`): 8 bytes, and 8 to check them.

    Not fsynced: it survives a crash of the process. What a power loss takes with it is covered by the highest id
    in the journal.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises DataDirectoryError."""
        self._fd = -1
        with _explained(path.parent):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def load(self) -> int:
        """The mark saved last; 0 for none. A torn one (power loss) counts as none."""
        content = os.pread(self._fd, 16, 0)
        if len(content) != 16:
            return 0
        ms, check = struct.unpack("<QQ", content)
        return ms if check == ms ^ _MARK_CHECK else 0

    def save(self, ms: int) -> None:
        """Raises OSError."""
        os.pwrite(self._fd, struct.pack("<QQ", ms, ms ^ _MARK_CHECK), 0)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an error that names the directory."""
    try:
        yield
    except OSError as error:
        raise DataDirectoryError(
            f"the data directory {path} cannot be used: {error.strerror or error}"
        ) from error


def _create(path: Path) -> None:
    missing = [path] if not path.exists() else []
    missing += [parent for parent in path.parents if missing and not parent.exists()]
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            continue  # another process was faster
        fsync_directory(directory.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def _check_ours(path: Path) -> None:
    """Raise for a directory that is someone else's, or a newer version's, before anything is written."""
    # The listing comes first: a process creating the directory meanwhile adds `format` before the rest.
    names = set(os.listdir(path))
    if _read_format(path) is None:
        strangers = {name for name in names - _HARMLESS if not name.startswith(_TEMPORARY)}
        if strangers:
            raise DataDirectoryError(
                f"{path} is not empty and not a data directory of hongyan (there is {min(strangers)!r} "
                f"and no {_FORMAT!r} file): name an empty or a new directory"
            )


def _read_format(path: Path) -> _Format | None:
    try:
        content = (path / _FORMAT).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(content, type=_Format)
    except msgspec.MsgspecError:
        raise DataDirectoryError(
            f"{path / _FORMAT} is damaged: restore the directory from a backup"
        ) from None
    if found.version > FORMAT:
        raise DataDirectoryError(
            f"{path} was written by a newer version of hongyan (format {found.version}, this one knows "
            f"{FORMAT}): start that version"
        )
    return found


def _mark(path: Path) -> str:
    """Create `format` where absent. Returns the directory's identity."""
    found = _read_format(path)
    if found is None:
        created = _Format(FORMAT, time.time_ns() // 1_000_000, secrets.token_hex(16))
        _create_file(path, _FORMAT, msgspec.json.encode(created) + b"\n")
        found = _read_format(path)
        assert found is not None
    return found.identity


def _secret(path: Path) -> bytes:
    file = path / _SECRET
    if not file.exists():
        if (path / _JOURNAL).exists():
            raise DataDirectoryError(
                f"{file} is missing: restore it from a backup, or write {SECRET_BYTES} random bytes into it, which "
                "makes every token issued so far invalid"
            )
        _create_file(path, _SECRET, secrets.token_bytes(SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) < SECRET_BYTES:
        raise DataDirectoryError(
            f"{file} is damaged ({len(secret)} bytes, at least {SECRET_BYTES} expected): restore it from a "
            f"backup, or write {SECRET_BYTES} random bytes into it, which makes every token issued so far invalid"
        )
    return secret


def _create_file(path: Path, name: str, content: bytes) -> None:
    """Create a file (mode 0600) whole and durable, or leave the one that another process created."""
    temporary = path / f"{_TEMPORARY}{name}-{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path / name)  # unlike a rename, it fails where the name is taken
        except FileExistsError:
            pass
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of creators that died; a young one may be in another process's hands."""
    for leftover in path.glob(f"{_TEMPORARY}*"):
        try:
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                leftover.unlink()
        except FileNotFoundError:
            continue


def _take_lock(path: Path) -> int:
    """The locked file's descriptor. Python opens it close-on-exec, so no child inherits the lock."""
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise DataDirectoryError(
            f"the data directory {path} is in use by another server (process {holder or 'unknown'}): "
            "stop that one, or name another directory with --data-dir"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def fsync_directory(path: Path) -> None:
    """Make names created in or removed from `path` survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
