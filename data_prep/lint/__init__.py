"""Checks of a clip table and of the files that it names."""
