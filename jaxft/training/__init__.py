"""How a model is trained: the loss, the objective, the optimizer, the step, and evaluation."""
