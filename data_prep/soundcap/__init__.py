"""SoundCap: captions that describe the sound of a clip, even when the clip has no audio track."""
