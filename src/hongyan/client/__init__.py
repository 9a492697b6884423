"""The Python client: each message once and in order for the application."""
