"""Several selections: compared, along a frontier, or one after another until a promise is kept."""
