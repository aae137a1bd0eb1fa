"""Repairing a sliced model: refit and fine-tuning."""
