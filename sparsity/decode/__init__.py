"""Decoding: tokens one by one, each from those before it."""
