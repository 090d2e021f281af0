"""What watches over learning: held-out losses, readings of fidelity and drift by a judge, and warnings before it is too late."""
