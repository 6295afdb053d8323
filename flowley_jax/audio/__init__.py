"""Sound: mel spectrograms, codecs between waves and latents, vocoders."""
