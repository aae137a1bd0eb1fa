"""Cutting units out of weights, and the check of the slice against the mask."""
