"""Upper bounds: proofs of how much better than a selection any other could be."""
