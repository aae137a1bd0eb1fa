"""The whole way, from a model and texts to a pruned folder."""
