"""What is compiled where it runs: C++ for the parts of attention that torch has no kernel for."""
