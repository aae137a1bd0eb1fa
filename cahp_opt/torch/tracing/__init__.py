"""What differentiation says belongs to which unit, and layouts learnt from it."""
