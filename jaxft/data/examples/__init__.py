"""Examples: the tokens of rows with masks of the supervised tokens, kept on disk."""
