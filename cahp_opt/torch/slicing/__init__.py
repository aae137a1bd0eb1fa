"""Cutting units out of weights, and checking the sliced model against the masked one."""
