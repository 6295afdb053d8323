"""Clip tables, records, and the components that connect records to media."""
