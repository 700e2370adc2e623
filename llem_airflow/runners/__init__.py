"""Where a cycle runs: one seam (base.py) for every place, and the runners of containers and of processes."""
