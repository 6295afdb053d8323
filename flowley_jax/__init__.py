"""Flowley in JAX: video-to-audio generation with rectified flow.

Importing the package is cheap; each part imports what it needs when it is imported itself.
"""

__version__ = "0.1.0"
