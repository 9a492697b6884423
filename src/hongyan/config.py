"""Settings: flags over `HONGYAN_*` environment over a TOML file over defaults."""

from __future__ import annotations

import os
import tomllib
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "HONGYAN_"
# Environment names of the family that are not settings of the server.
OTHER_VARIABLES = {"HONGYAN_TOKEN", "HONGYAN_HINTS", "HONGYAN_COMMAND", "HONGYAN_LONG"}

MiB = 1024 * 1024
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class ConfigError(Exception):
    """A wrong setting; the text names it, what is wrong and where it came from."""


class Settings(BaseSettings):
    """Every setting with its default. Times are in the unit of the name, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Port = 8080
    http_port: Port = 8081
    data_dir: Path = Path("hongyan-data")
    node_id: Annotated[int, Field(ge=0, le=1023)] = 1
    workers: Positive = 1
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    heartbeat_interval_ms: Annotated[int, Field(ge=50)] = 30_000
    login_timeout_ms: Annotated[int, Field(ge=50)] = 10_000
    # 80 KiB at most: a character of content can take six in JSON, and no frame of ours passes 512 KiB.
    max_frame_bytes: Annotated[int, Field(ge=1024, le=81_920)] = 65_536
    outbound_buffer_bytes: Annotated[int, Field(ge=16_384)] = MiB
    rate_limit: Count = 100
    rate_burst: Positive = 200
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
    trusted_proxies: list[IPv4Network | IPv6Network] = []

    dedup_window_ms: Count = 300_000
    dedup_window_messages: Positive = 200_000
    cache_conversations: Positive = 100_000
    tail_messages: Positive = 100_000
    tail_bytes: Positive = 64 * MiB
    store_flush_interval_ms: Positive = 200
    store_sync_interval_ms: Positive = 5000
    batch_records: Positive = 512
    batch_bytes: Positive = 512 * 1024
    max_pending_bytes: Positive = 64 * MiB

    jwt_algorithm: Literal["HS256", "RS256", "EdDSA"] = "HS256"
    jwt_public_key: Path | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    token_ttl_s: Positive = 86_400
    registration: bool | None = None
    shutdown_timeout_s: Positive = 10

    @model_validator(mode="after")
    def _key_fits_algorithm(self) -> Settings:
        if (self.jwt_algorithm != "HS256") != (self.jwt_public_key is not None):
            raise ValueError("jwt_public_key goes with jwt_algorithm RS256 or EdDSA, and they need it")
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
        return self.jwt_public_key is None if self.registration is None else self.registration


def load(flags: dict[str, Any], file: Path | None = None) -> Settings:
    """Settings of all sources; `flags` only those given. Raises ConfigError."""
    from_file = _read_toml(file) if file is not None else {}
    names = set(Settings.model_fields)
    faults = [f"{file}: unknown setting {name!r}" for name in from_file if name not in names]
    in_environment = {name for name in os.environ if name.startswith(PREFIX)} - OTHER_VARIABLES
    known = {f"{PREFIX}{name}".upper() for name in names}
    faults += [f"{name}: unknown setting" for name in sorted(in_environment - known)]
    if faults:
        raise ConfigError("\n".join(faults))
    below = {name: value for name, value in from_file.items() if f"{PREFIX}{name}".upper() not in os.environ}
    try:
        return Settings(**{**below, **flags})
    except ValidationError as error:
        raise ConfigError("\n".join(_fault(dict(each), flags, file) for each in error.errors())) from None
    except Exception as error:  # pydantic-settings: an environment value that is no JSON where a list is due
        raise ConfigError(str(error)) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None


def _fault(error: dict[str, Any], flags: dict[str, Any], file: Path | None) -> str:
    location = error["loc"]
    if not location:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(location[0])
    if name in flags:
        source = "--" + name.replace("_", "-")
    elif (variable := f"{PREFIX}{name}".upper()) in os.environ:
        source = variable
    else:
        source = f"{file}: {name}"
    return f"{source}: {error['msg']} (got {error['input']!r})"
