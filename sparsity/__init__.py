"""Sparsity: networks whose activations are sparse, in JAX and Flax."""
