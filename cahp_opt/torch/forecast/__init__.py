"""What a run would do, said before it does it."""
