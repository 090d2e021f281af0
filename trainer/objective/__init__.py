"""What a step minimises: the noise, the target and the weights of the two halves of the loss."""
