"""Loads, merges, writes and verifies adapters and whole models."""
