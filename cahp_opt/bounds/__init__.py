"""Proofs: how much better than a selection any other could be."""
