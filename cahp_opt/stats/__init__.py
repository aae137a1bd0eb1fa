"""Records of calibration statistics."""
