"""Rows as tokens and masks of what is learned, kept on disk."""
