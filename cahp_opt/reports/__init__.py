"""Pages for people: one HTML file per run, comparison or study, and the words for their numbers."""
