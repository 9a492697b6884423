"""Settings: flags over `HONGYAN_*` environment over a TOML file over defaults."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "HONGYAN_"
# Names of the family that are not settings of the server: the chat client's, make's, the tests'.
OTHER_VARIABLES = {"HONGYAN_TOKEN", "HONGYAN_HINTS", "HONGYAN_COMMAND", "HONGYAN_LONG", "HONGYAN_TEST_LONG"}
# What Kubernetes gives every container beside a Service called "hongyan". HONGYAN_PORT is among it and
# hides a setting; see `_fault`.
_SERVICE_LINK = re.compile(
    r"HONGYAN_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SHOWN = 60  # characters of a wrong value in a message


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # Python's `True` is 1: `port = true` would be port 1
        raise ValueError("a number is due, not true or false")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split(value: object) -> object:
    """Lists come from the environment as `10.0.0.0/8, 192.168.1.7`."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _network(value: object) -> object:
    return ip_network(value, strict=False) if isinstance(value, str) else value


def _path(value: object) -> object:
    if isinstance(value, str):
        if "-----BEGIN" in value:
            raise ValueError("the path of a PEM file is due, not the key itself")
        if not value or "\0" in value:
            raise ValueError("a path is due")
        return Path(value).expanduser()
    return value


def _host(value: str) -> str:
    """An address, or a name that has one now: what cannot be listened on is said before anything is made."""
    try:
        socket.getaddrinfo(value, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ValueError("neither an address nor a name that has one") from None
    return value


def _workers(value: object) -> object:
    if value == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
        raise ValueError("a number is due, or auto")
    return value


MAX_WORKERS = 64  # a share of the ids of one millisecond is left for each (ids.py)
MiB = 1024 * 1024
Int = Annotated[int, BeforeValidator(_no_bool)]
Port = Annotated[Int, Field(ge=0, le=65535)]
Count = Annotated[Int, Field(ge=0)]
Positive = Annotated[Int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
File = Annotated[Path, BeforeValidator(_path)]


class ConfigError(Exception):
    """A wrong setting. The text has one line a fault: where the setting came from, and what is wrong."""


class Settings(BaseSettings):
    """Every setting with its default. Times are in the unit of the name, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: Annotated[Text, AfterValidator(_host)] = "127.0.0.1"
    port: Port = 8080
    http_port: Port = 8081
    data_dir: File = Path("hongyan-data")
    node_id: Annotated[Int, Field(ge=0, le=1023)] = 1
    workers: Annotated[Int, BeforeValidator(_workers), Field(ge=1, le=MAX_WORKERS)] = 1
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    log_format: Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)] = "auto"

    heartbeat_interval_ms: Annotated[Int, Field(ge=50)] = 30_000
    login_timeout_ms: Annotated[Int, Field(ge=50)] = 10_000
    # 80 KiB at most: a character of content can take six in JSON, and no frame of ours passes 512 KiB.
    max_frame_bytes: Annotated[Int, Field(ge=1024, le=81_920)] = 65_536
    outbound_buffer_bytes: Annotated[Int, Field(ge=16_384)] = MiB
    max_outbound_bytes: Positive = 256 * MiB
    rate_limit: Count = 100
    rate_burst: Positive = 200
    max_connections: Count = 0
    max_unauthenticated_per_address: Positive = 1000
    max_unauthenticated: Positive = 10_000
    max_devices_online: Positive = 10
    max_devices: Positive = 100
    failed_logins_per_minute: Positive = 10
    registrations_per_minute: Positive = 60
    membership_changes_per_minute: Count = 10
    group_creations_per_hour: Count = 20
    max_group_members: Positive = 100_000
    max_groups: Positive = 5000
    group_event_max_members: Count = 1000
    max_presence_subscriptions: Count = 1000
    presence: Literal["all", "contacts", "off"] = "all"
    presence_offline_delay_ms: Count = 5000
    trusted_proxies: Annotated[list[Network], NoDecode, BeforeValidator(_split)] = []

    dedup_window_ms: Count = 300_000
    dedup_window_messages: Positive = 200_000
    cache_conversations: Positive = 100_000
    tail_messages: Positive = 100_000
    tail_bytes: Positive = 64 * MiB
    store_flush_interval_ms: Positive = 200
    store_sync_interval_ms: Positive = 5000
    cursor_flush_interval_ms: Count = 30_000
    batch_records: Positive = 4096
    batch_bytes: Positive = 1024 * 1024
    max_pending_bytes: Positive = 64 * MiB

    jwt_algorithm: Literal["HS256", "RS256", "EdDSA"] = "HS256"
    jwt_public_key: File | None = None
    jwt_audience: Text | None = None
    jwt_issuer: Text | None = None
    token_ttl_s: Positive = 86_400
    registration: bool | None = None
    shutdown_timeout_s: Positive = 10

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        # The text up to the colon is the setting at fault: `_fault` puts its source there.
        if self.jwt_algorithm != "HS256" and self.jwt_public_key is None:
            raise ValueError(f"jwt_algorithm:{self.jwt_algorithm} needs jwt_public_key, a PEM file")
        if self.jwt_algorithm == "HS256" and self.jwt_public_key is not None:
            raise ValueError("jwt_public_key:goes with jwt_algorithm RS256 or EdDSA")
        if self.port and self.port == self.http_port:
            raise ValueError(f"http_port:{self.port} is the gateway's port already")
        return self

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        return init_settings, env_settings

    @property
    def registration_on(self) -> bool:
        """Register and login over HTTP: on, unless tokens come from elsewhere, unless switched."""
        return self.jwt_public_key is None if self.registration is None else self.registration


def load(flags: dict[str, Any], file: Path | None = None) -> Settings:
    """Settings of all sources. `flags`: by setting's name, only those given. Raises ConfigError."""
    from_file = _read_toml(file) if file is not None else {}
    variables = _variables()
    known = set(Settings.model_fields)
    faults = [
        f"{file}: {_unknown(name, known, value)}" for name, value in from_file.items() if name not in known
    ]
    faults += _unknown_variables()
    below = {
        name: value
        for name, value in from_file.items()
        if name in Settings.model_fields and name not in variables
    }
    settings = None
    try:
        settings = Settings(**{**below, **flags})
    except ValidationError as error:
        faults += [_fault(dict(each), flags, variables, file) for each in error.errors()]
    if faults or settings is None:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return settings


def _variables() -> dict[str, str]:
    """Setting -> the variable of the environment that gives it."""
    found = {}
    for variable in os.environ:
        name = variable.lower().removeprefix(PREFIX.lower())
        if variable.upper().startswith(PREFIX) and name in Settings.model_fields:
            found[name] = variable
    return found


def _unknown_variables() -> list[str]:
    """A misspelt limit that is passed over in silence is worse than a server that does not start."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return [
        _unknown(name, known)
        for name in sorted(os.environ)
        if name.startswith(PREFIX)
        and name not in known | OTHER_VARIABLES
        and not _SERVICE_LINK.fullmatch(name)
    ]


def _unknown(name: str, known: set[str], value: object = None) -> str:
    if isinstance(value, dict):
        return f"{name}: settings stand at the top of the file, not in tables"
    near = get_close_matches(name, sorted(known), 1)
    return f"{name}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOML's own, and bytes that are not UTF-8
        raise ConfigError(f"--config {file}: not TOML: {error}") from None


def _fault(error: dict[str, Any], flags: dict[str, Any], variables: dict[str, str], file: Path | None) -> str:
    """One line for one fault: its source, what is wrong, the value (shortened)."""
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        name, _, text = text.partition(":")
        return f"{_source(name, flags, variables, file)}: {text}"
    name, value = str(error["loc"][0]), error["input"]
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    if isinstance(value, str) and "-----BEGIN" in value:
        shown = "a PEM block"  # possibly a private one
    if variables.get(name) == "HONGYAN_PORT" and str(value).startswith("tcp://"):
        text += "; Kubernetes sets it for a Service named hongyan: use enableServiceLinks: false"
    return f"{_source(name, flags, variables, file)}: {text} (got {shown})"


def _source(name: str, flags: dict[str, Any], variables: dict[str, str], file: Path | None) -> str:
    if name in flags:
        return "--" + name.replace("_", "-")
    if name in variables:
        return variables[name]
    return name if file is None else f"{file}: {name}"
