"""The Triton kernels and how they are launched. Knows torch and Triton alone."""
