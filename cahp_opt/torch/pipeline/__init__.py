"""The whole run, from a model and texts to a folder with the pruned model."""
