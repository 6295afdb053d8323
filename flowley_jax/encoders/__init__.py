"""Encoders of pictures and captions."""
