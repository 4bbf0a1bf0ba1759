"""Training: the ops differentiated, and the operators that compute their gradients."""
