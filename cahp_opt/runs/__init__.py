"""What one whole run is told, and what it reports: records alone."""
