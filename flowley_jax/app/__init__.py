"""A web page that makes sound for a video."""
