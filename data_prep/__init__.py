"""Data preparation: clip tables, captions and training records from media files."""
