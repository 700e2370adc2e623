"""From checked values to runs: sweep, rules, identity, order, the plan."""
