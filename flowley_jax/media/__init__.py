"""Reading and writing of video and sound, with PyAV and soundfile."""
