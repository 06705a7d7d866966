"""The report of a curation: one HTML page, and the yield of other thresholds."""
