"""How a model is trained: loss, optimizer, step, evaluation, checkpoints, and the loop."""
