"""Benchmarks of this project. Each module says how it is run; results are kept in benchmarks/results/."""
