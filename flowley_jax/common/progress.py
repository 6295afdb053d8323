"""Progress bars."""

import sys

from tqdm import tqdm


def progress_bar(label: str, *, total: int) -> tqdm:
    """Return a progress bar that outside a terminal updates only every 30 seconds."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, desc=label, unit="", mininterval=interval)
