"""Traffic for an online service: when requests arrive, and the client that sends them and times the answers."""
