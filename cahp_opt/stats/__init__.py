"""What calibration measured: records alone."""
