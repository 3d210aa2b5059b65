"""Compiled kernels, built where they run: C++ for single precision on a CPU."""
