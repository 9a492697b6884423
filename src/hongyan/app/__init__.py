"""Put the parts together. The only room that names concrete adapters."""

from __future__ import annotations

import os
import sys

from hongyan.app import single, workers
from hongyan.app.allocator import give_freed_memory_back
from hongyan.config import Settings
from hongyan.errors import DataDirectoryError
from hongyan.log import configure

EXIT_FAILED = 1  # could not start: directory in use or damaged, port taken


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process's exit code. Raises ConfigError."""
    configure(settings)
    give_freed_memory_back()
    os.umask(0o077)  # SQLite and RocksDB make their files as the process does: messages are nobody else's
    try:
        return single.run(settings) if settings.workers == 1 else workers.run(settings)
    except DataDirectoryError as error:
        print(f"hongyan: {error}", file=sys.stderr)
    except OSError as error:
        print(f"hongyan: cannot start: {error}", file=sys.stderr)
    return EXIT_FAILED
