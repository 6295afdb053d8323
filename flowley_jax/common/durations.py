"""Durations as people read them."""


def format_duration(seconds: float) -> str:
    """Return a duration as h:mm:ss, or as m:ss if it is below one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
