"""Weights: strict loading and `create_model`."""
