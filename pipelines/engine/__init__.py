"""The step contract and what runs it: segments, tasks, tables, cached results, exclusions."""
