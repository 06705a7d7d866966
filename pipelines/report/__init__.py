"""The report of a curation: one HTML page that holds all it shows."""
