"""From a file of examples to `batch(step)`: rows, templates, tokens, packing, batches."""
