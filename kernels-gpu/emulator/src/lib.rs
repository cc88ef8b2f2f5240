//! Runs GPU kernels on the CPU.
