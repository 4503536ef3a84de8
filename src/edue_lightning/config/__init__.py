"""Configurations: their check, the objects built from them, and the shared parts of all commands."""
