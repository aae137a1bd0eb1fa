"""What several solvers share, and the pieces of the larger ones."""
