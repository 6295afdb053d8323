"""From media files to training records."""
