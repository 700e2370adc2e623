"""The meaning: energy, latency, statistics, comparison, report. Pure functions over stored evidence."""
