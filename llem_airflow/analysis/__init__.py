"""The meaning of stored results: energy, latency, statistics, comparison, history. Nothing here prints or draws."""
