"""What will fit: the run's own code rehearsed on tensors without memory, and the choice of the fastest plan within a budget."""
