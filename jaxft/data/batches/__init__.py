"""Batches by step number, made of the examples of sources or of a stream of rows."""
