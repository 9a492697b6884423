"""Settings: order of the sources, and a fault named with where it came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hongyan.config import ConfigError, Settings, load

EXAMPLE = Path(__file__).parents[2] / "docs" / "hongyan.example.toml"


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "h.toml"
    file.write_text("port = 1001\nhttp_port = 1002\nrate_limit = 7\n")
    monkeypatch.setenv("HONGYAN_PORT", "2001")
    monkeypatch.setenv("HONGYAN_HTTP_PORT", "2002")
    found = load({"port": 3001}, file)
    assert (found.port, found.http_port, found.rate_limit, found.host) == (3001, 2002, 7, "127.0.0.1")


def test_a_fault_names_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "h.toml"
    for text, source in (
        ("port = 70000", "h.toml: port"),
        ("prot = 1", "prot: no such setting"),
        ("=", "not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(source)):
            load({}, file)
    with pytest.raises(ConfigError, match="--port"):
        load({"port": -1})
    with pytest.raises(ConfigError, match="--config"):
        load({}, tmp_path / "none.toml")
    monkeypatch.setenv("HONGYAN_PORT", "many")
    with pytest.raises(ConfigError, match="HONGYAN_PORT"):
        load({})
    monkeypatch.setenv("HONGYAN_PROT", "1")
    with pytest.raises(ConfigError, match="HONGYAN_PROT"):
        load({})


def test_a_public_key_goes_with_its_algorithm() -> None:
    with pytest.raises(ConfigError, match="jwt_public_key"):
        load({"jwt_algorithm": "EdDSA"})


def test_the_example_file_has_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.findall(r"^(?:# )?([a-z_]+) =", EXAMPLE.read_text(), re.MULTILINE)
    assert named == list(Settings.model_fields)
    assert load({}, EXAMPLE) == Settings()
