"""Attention over queries, keys and values: one interface, and one file for each implementation."""
