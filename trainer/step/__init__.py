"""One training step as a schedule over units: where each unit's bytes are, its gradient, its rate, its update."""
