"""Float64 theory in numpy and scipy; no jax."""
