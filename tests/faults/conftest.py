"""Fault tests run a few rounds in `make test` and many with HONGYAN_TEST_LONG=1 (or HONGYAN_LONG=1)."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def rounds() -> int:
    return 20 if os.environ.get("HONGYAN_TEST_LONG") or os.environ.get("HONGYAN_LONG") else 3
