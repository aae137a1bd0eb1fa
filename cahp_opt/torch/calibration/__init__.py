"""Statistics of a model on calibration data."""
