"""Meters: one file for each way to read power, and one that chooses among them."""
