"""Clip tables of data sets whose files are on disk."""
