"""Reading and writing video and sound, through PyAV alone."""
