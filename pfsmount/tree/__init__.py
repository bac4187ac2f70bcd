"""Immutable directories and files as objects."""
