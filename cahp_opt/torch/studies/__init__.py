"""Studies: every method at every limit with every recovery, resumable and spread over workers."""
