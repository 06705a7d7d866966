"""Questions to a captioning engine about many clips, and keeping its answers."""
