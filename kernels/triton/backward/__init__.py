"""The kernels of the gradients, and their launches."""
