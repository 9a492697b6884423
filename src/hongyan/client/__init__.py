"""The Python client (docs/api/client.md)."""

from hongyan.client.client import Client
from hongyan.client.errors import (
    ClientError,
    Closed,
    ConnectionLost,
    Kicked,
    LoginRefused,
    Replaced,
    RequestRefused,
    RequestTimeout,
    TooLarge,
    Unreachable,
)
from hongyan.client.models import Ack, Event, Message

__all__ = [
    "Ack",
    "Client",
    "ClientError",
    "Closed",
    "ConnectionLost",
    "Event",
    "Kicked",
    "LoginRefused",
    "Message",
    "Replaced",
    "RequestRefused",
    "RequestTimeout",
    "TooLarge",
    "Unreachable",
]
