"""What is compiled where it runs: C++ for what torch has no kernel for, or none that stays in the cache."""
