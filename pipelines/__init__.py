"""Raw video to shards, and the command line that runs a whole recipe."""
