"""Looks for what is wrong with a clip table and the files that it names."""
