"""The options of a whole run, and its report: records alone."""
