"""The supervisor process: it starts, watches, restarts and routes; it never runs a session's code."""

__athena__ = True
