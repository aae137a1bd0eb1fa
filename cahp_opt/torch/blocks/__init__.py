"""The blocks of a model: found, read and checked against the shapes of their weights."""
