"""What converters and runtimes write for their own developers."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Keep what a block prints, logs and warns of from the user's screen, and from `--json`.

    What native libraries write goes past Python, to the process's own standard output and error.

    Args:
        packages: whose loggers are to be still.
    """
    loggers = [logging.getLogger(name) for name in packages]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _nowhere(1), _nowhere(2):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _nowhere(descriptor: int) -> Iterator[None]:
    """Let what a process writes there vanish."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    stream.flush()
    kept = os.dup(descriptor)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
            redirect = contextlib.redirect_stdout if descriptor == 1 else contextlib.redirect_stderr
            with redirect(nowhere):
                yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def in_short(error: Exception) -> str:
    """What a library says, on one line of at most 120 characters.

    >>> in_short(ValueError("no   model"))
    'no model'
    """
    return " ".join(str(error).split())[:120]
