"""Seconds, bytes and weights of a model: measured, counted or estimated."""
