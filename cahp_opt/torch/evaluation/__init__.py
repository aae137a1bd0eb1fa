"""How far a model's outputs are from the unpruned model's."""
