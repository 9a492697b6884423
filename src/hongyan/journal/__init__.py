"""The ordered, durable log every change goes through (port and adapters)."""
