"""Measures of generated sound."""
