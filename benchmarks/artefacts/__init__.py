"""What the Triton kernels compile to, for devices that need not be there: registers, shared memory, spills, loops."""
