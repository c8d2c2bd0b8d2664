"""Rows as tokens and masks of the supervised tokens, kept on disk."""
