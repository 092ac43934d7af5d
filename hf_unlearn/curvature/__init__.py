"""What the loss looks like around the weights: input covariances, Fisher information."""
