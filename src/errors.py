"""Faults of input or configuration, told in one clear message instead of a traceback."""

from __future__ import annotations

import io
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_TERMINATED = 128 + 15  # what a shell reports of a program that SIGTERM ended
INTERRUPTED = 128 + 2  # and of one that Ctrl-C ended


class UserError(ValueError):
    """Something that whoever started the program can mend.

    The message names what is wrong, where (the file), and what to do.
    """


@contextmanager
def explained(go_on: bool = False, after_interrupt: str = "") -> Iterator[None]:
    """End the program with the message of a ``UserError``, without a traceback, and exit code 1.

    An exit without a code counts as success; a framework that gives up its work that way (on a signal) must not.
    Names of files that hold bytes which are no UTF-8 are printed with escapes inside the block.

    Args:
        go_on: print the message, but leave it to the caller whether the program ends: one run of a sweep must not end
            the others.
        after_interrupt: what to do after Ctrl-C; by default that is an error like others, with a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        if not after_interrupt:
            raise
        print(f"interrupted; {after_interrupt}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as stopped:
        if stopped.code is None:
            print("error: stopped before the end", file=sys.stderr)
            raise SystemExit(_TERMINATED) from None
        raise
    except Exception as error:
        if go_on:
            _release(error)
        if isinstance(error, UserError):
            print(f"error: {message_of(error)}", file=sys.stderr)
            if not go_on:
                raise SystemExit(1) from None
        raise


def _release(error: BaseException) -> None:
    """Let go of the variables of where an error came from.

    Whoever keeps the error would keep what was on the device too, and the next run would have no room.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def message_of(error: BaseException) -> str:
    """The error's own message, also when a loader's process raised it and wrapped it in its traceback."""
    text = str(error)
    wrapped = re.search(rf"\n(?:[\w.]+\.)?{type(error).__name__}: (.*)\Z", text, re.DOTALL)
    return wrapped.group(1).strip() if text.startswith("Caught ") and wrapped else text
