"""Running a model and leaving it as it was: batches, gates, padding, trials."""
