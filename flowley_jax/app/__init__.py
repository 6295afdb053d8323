"""A page in the browser on which one makes sound for a video."""
