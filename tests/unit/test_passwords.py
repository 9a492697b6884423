"""Passwords: hashes, equal work for everyone, a bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from hongyan.errors import Refused
from hongyan.passwords import Passwords, check_password


class CountingHasher(PasswordHasher):
    """Cheap, and counts what is verified; `gate` holds a verification up."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        self.verified.append(str(hash))
        self.entered.release()
        assert self.gate.wait(20)
        return super().verify(hash, password)


@pytest.fixture
def hasher() -> Iterator[CountingHasher]:
    hasher = CountingHasher()
    yield hasher
    hasher.gate.set()


@pytest.fixture
def passwords(hasher: CountingHasher) -> Iterator[Passwords]:
    passwords = Passwords(hasher, max_waiting=3)
    yield passwords
    hasher.gate.set()
    passwords.close()
    passwords.close()


async def test_a_hash_is_argon2id_and_salted():
    passwords = Passwords()
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    passwords.close()
    assert first != second
    parameters = extract_parameters(first)
    assert parameters.type is Type.ID
    assert parameters.memory_cost >= 19 * 1024  # KiB; the least that OWASP names for argon2id


async def test_only_the_right_password_verifies(passwords):
    stored = await passwords.hash("correct horse é")
    assert await passwords.verify(stored, "correct horse é")
    assert not await passwords.verify(stored, "wrong horse")
    assert not await passwords.verify("not a hash", "correct horse é")


@pytest.mark.parametrize("stored", [None, ""])
async def test_nobody_costs_what_somebody_costs(passwords, hasher, stored):
    assert not await passwords.verify(stored, "12345678")
    assert not await passwords.verify(stored, "12345678")
    assert len(hasher.verified) == 2
    nobody = extract_parameters(hasher.verified[0])
    assert nobody == extract_parameters(await passwords.hash("x"))


async def test_past_the_queue_it_is_busy_and_a_cancelled_asker_still_counts(passwords, hasher):
    stored = await passwords.hash("12345678")
    await passwords.verify(None, "12345678")
    hasher.entered = threading.Semaphore(0)
    hasher.gate.clear()
    asking = [asyncio.create_task(passwords.verify(stored, "12345678")) for _ in range(3)]
    for _ in range(2):  # both threads are at work
        assert await asyncio.to_thread(hasher.entered.acquire, timeout=20)
    asking[0].cancel()
    await asyncio.wait([asking[0]])
    with pytest.raises(Refused) as caught:
        await passwords.hash("12345678")
    assert caught.value.error.code == "busy"
    hasher.gate.set()
    assert await asking[1] and await asking[2]
    assert await passwords.verify(stored, "12345678")


@pytest.mark.parametrize("value", ["x" * 8, "x" * 256, "é" * 4, "é" * 128, "鸿雁" * 2])
def test_lengths_are_bytes(value):
    assert check_password(value) == value


@pytest.mark.parametrize(
    "value", ["x" * 7, "x" * 257, "é" * 129, "鸿雁", "", "\ud800aaaaaaaaa", None, 12345678, []]
)
def test_what_is_no_password(value):
    with pytest.raises(Refused) as caught:
        check_password(value)
    assert (caught.value.error.code, caught.value.error.field) == ("invalid_field", "password")
