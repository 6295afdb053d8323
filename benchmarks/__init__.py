"""Measurements of this project; results are kept in benchmarks/results/."""
