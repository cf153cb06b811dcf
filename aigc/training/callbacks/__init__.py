"""Callbacks of training: budget, scores, samples, checkpoints and the run's record."""
