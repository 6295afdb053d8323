"""Mel spectrograms, codecs between waves and latents, and vocoders."""
