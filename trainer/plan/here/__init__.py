"""The machine that a plan is for, as far as it was measured and not assumed, and the plan held against what it then took."""
