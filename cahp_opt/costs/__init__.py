"""Costs of counts of kept units, and limits on them."""
