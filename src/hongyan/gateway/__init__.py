"""Sockets: handshake, frames, login state, heartbeats, outboxes, fan-out."""
