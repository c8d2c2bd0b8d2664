"""How queries, keys and values become the output of attention: one interface, a file a way."""
