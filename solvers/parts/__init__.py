"""Parts that several solvers share, and parts of the larger ones."""
