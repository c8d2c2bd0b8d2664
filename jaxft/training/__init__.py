"""Trains a model: the loss, the objective, the optimizer, the step, evaluation, checkpoints."""
