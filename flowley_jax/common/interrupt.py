"""Ctrl-C before a program has anything to clean up: one line, and the exit code that shells expect."""

import os
import signal
import sys
import types

INTERRUPTED = 130
INTERRUPTED_LINE = "interrupted; run the same command again to continue"
_IMPORT_FILES = "<frozen importlib"


def end_imports_on_interrupt() -> None:
    """Let Ctrl-C within an import end the program at once; elsewhere it raises KeyboardInterrupt, as usual.

    Libraries that are being imported swallow the exception, or turn it into another one.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:
            signal.signal(signal.SIGINT, on_interrupt)
        except ValueError:
            # Only the main thread gets signals.
            return


def on_interrupt(number: int, frame: types.FrameType | None) -> None:
    """Handle Ctrl-C. Without a frame, as another thread calls it, it ends the program at once."""
    del number
    while frame is not None and not frame.f_code.co_filename.startswith(_IMPORT_FILES):
        frame = frame.f_back
        if frame is None:
            raise KeyboardInterrupt
    print(INTERRUPTED_LINE, file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
