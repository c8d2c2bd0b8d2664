"""How a model answers: decoding with a cache, picking tokens, and the text that comes of it."""
