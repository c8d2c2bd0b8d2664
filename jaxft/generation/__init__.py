"""Generates text: decoding with a cache, picking tokens, and converting tokens to text."""
