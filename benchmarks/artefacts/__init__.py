"""The machine code of the Triton kernels, for devices that may be absent: registers, shared memory, spills, loops."""
