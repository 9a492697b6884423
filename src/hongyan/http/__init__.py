"""REST for accounts, health and metrics."""
