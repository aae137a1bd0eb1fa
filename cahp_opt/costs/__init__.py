"""What counts of kept units cost, and what a model may cost."""
