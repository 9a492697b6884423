"""Settings: which source wins, and what is said of a wrong one."""

from __future__ import annotations

import re
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from hongyan.config import ConfigError, Settings, load

EXAMPLE = Path(__file__).parents[2] / "docs/hongyan.example.toml"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("HONGYAN_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "hongyan.toml"
        path.write_text(text)
        return path

    return write


def faults(flags: dict[str, Any], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, file)
    return str(caught.value).splitlines()


def test_flags_win_over_environment_over_file_over_defaults(toml, monkeypatch):
    file = toml("port = 1\nhttp_port = 2\nrate_limit = 3\n")
    monkeypatch.setenv("HONGYAN_PORT", "11")
    monkeypatch.setenv("HONGYAN_HTTP_PORT", "12")
    settings = load({"port": 21}, file)
    assert (settings.port, settings.http_port, settings.rate_limit, settings.rate_burst) == (21, 12, 3, 200)


def test_a_fault_names_its_source(toml, monkeypatch):
    monkeypatch.setenv("HONGYAN_NODE_ID", "1024")
    file = toml("max_frame_bytes = 5\n")
    found = faults({"http_port": 99999}, file)
    assert len(found) == 3
    assert any(line.startswith("--http-port: ") and "99999" in line for line in found)
    assert any(line.startswith("HONGYAN_NODE_ID: ") and "1024" in line for line in found)
    assert any(line.startswith(f"{file}: max_frame_bytes: ") for line in found)


def test_a_fault_below_is_covered_by_what_is_above(toml):
    assert load({"port": 5}, toml('port = "nonsense"\n')).port == 5


def test_unknown_names_are_faults_with_a_guess(toml, monkeypatch):
    monkeypatch.setenv("HONGYAN_RATE_LIMTI", "5")
    file = toml("prot = 1\n[server]\nport = 1\n")
    found = faults({}, file)
    assert "HONGYAN_RATE_LIMTI: no such setting; did you mean HONGYAN_RATE_LIMIT?" in found
    assert f"{file}: prot: no such setting; did you mean port?" in found
    assert any("server: settings stand at the top" in line for line in found)


@pytest.mark.parametrize(
    "name", ["HONGYAN_TOKEN", "HONGYAN_SERVICE_HOST", "HONGYAN_PORT_8080_TCP", "HONGYAN_PORT_8080_TCP_ADDR"]
)
def test_others_variables_are_let_be(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    assert load({}) == Settings()


def test_what_kubernetes_does_to_the_port_is_explained(monkeypatch):
    monkeypatch.setenv("HONGYAN_PORT", "tcp://10.0.0.1:8080")
    (fault,) = faults({})
    assert fault.startswith("HONGYAN_PORT: ")
    assert "enableServiceLinks" in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = true", "port: a number is due"),
        ("port = 1.5", "port: "),
        ('log_level = "loud"', "log_level: "),
        ('presence = "some"', "presence: "),
        ('host = ""', "host: "),
        ('trusted_proxies = ["10.0.0.0/99"]', "trusted_proxies: "),
        ('jwt_algorithm = "none"', "jwt_algorithm: "),
        ('jwt_algorithm = "RS256"', "jwt_algorithm: RS256 needs jwt_public_key"),
        ('jwt_public_key = "k.pem"', "jwt_public_key: goes with"),
        ("http_port = 8080", "http_port: 8080 is the gateway's"),
        ("port = ", "not TOML"),
    ],
)
def test_wrong_values_are_refused(toml, text, expected):
    (fault,) = faults({}, toml(text + "\n"))
    assert expected in fault


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert faults({}, tmp_path / "gone.toml") == [
        f"--config {tmp_path / 'gone.toml'}: No such file or directory"
    ]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    file = tmp_path / "x.toml"
    file.write_bytes(b"host = '\xff'\n")
    (fault,) = faults({}, file)
    assert fault.startswith(f"--config {file}: not TOML")


def test_a_key_in_place_of_its_path_is_not_printed(monkeypatch):
    monkeypatch.setenv("HONGYAN_JWT_PUBLIC_KEY", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n")
    (fault,) = faults({})
    assert "the path of a PEM file is due" in fault
    assert "c2VjcmV0" not in fault


def test_lists_come_from_the_environment_with_commas(monkeypatch):
    monkeypatch.setenv("HONGYAN_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    assert load({}).trusted_proxies == [ip_network("10.0.0.0/8"), ip_network("::1/128")]


def test_registration_follows_the_key_unless_switched():
    key = {"jwt_algorithm": "EdDSA", "jwt_public_key": Path("k.pem")}
    assert Settings().registration_on
    assert not Settings(registration=False).registration_on
    assert not Settings(**key).registration_on
    assert Settings(registration=True, **key).registration_on


def test_the_example_has_every_setting_with_its_default():
    text = EXAMPLE.read_text()
    given = tomllib.loads(text)
    without_value = set(re.findall(r"^# (\w+) =", text, re.MULTILINE))
    assert set(given) | without_value == set(Settings.model_fields)
    assert not set(given) & without_value
    assert load({}, EXAMPLE) == Settings()
    for name in without_value:
        assert getattr(Settings(), name) is None


def test_workers_are_a_number_or_one_a_core(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5})
    assert load({"workers": "auto"}).workers == 3
    monkeypatch.setenv("HONGYAN_WORKERS", "4")
    assert load({}).workers == 4
    assert faults({"workers": "0"})[0].startswith("--workers: ")
    assert faults({"workers": "two"}) == ["--workers: a number is due, or auto (got 'two')"]
