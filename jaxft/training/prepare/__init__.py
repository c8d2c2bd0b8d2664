"""Turns a recipe into a plan: everything that is decided before the first step."""
