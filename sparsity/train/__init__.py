"""Training: state, losses, optimizers, step, loop."""
