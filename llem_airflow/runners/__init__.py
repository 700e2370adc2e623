"""Where a cycle runs: one interface (base.py) for every place, and the runners of containers and of processes."""
