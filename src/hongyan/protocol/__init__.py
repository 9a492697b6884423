"""The wire contract as pure code: no asyncio, no I/O, no clock."""
