"""Encoders of video frames and of captions."""
