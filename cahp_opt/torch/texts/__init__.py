"""Texts as batches of a model."""
