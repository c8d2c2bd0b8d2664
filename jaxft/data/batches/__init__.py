"""Examples, or streams of rows, as batches by step number."""
