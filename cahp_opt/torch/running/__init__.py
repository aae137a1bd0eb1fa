"""Running somebody else's model, which is left as it was: batches, gates, padding, one layer at a time."""
