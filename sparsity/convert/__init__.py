"""Public checkpoints to this code's parameters, and back, by model."""
