"""Hongyan: an instant-messaging server that keeps every acknowledged message."""

__version__ = "0.1.0"
