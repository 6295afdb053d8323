"""SoundCap: captions that say what is to be heard, also for videos without sound."""
