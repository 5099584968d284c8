"""What the Triton kernels compile to, for devices that need not be there, and the cost that this predicts."""
