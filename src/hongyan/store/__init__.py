"""The view of the journal that reads come from (port and adapters)."""
