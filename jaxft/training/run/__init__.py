"""Runs a plan: makes its steps, writes logs and checkpoints, and writes the result."""
