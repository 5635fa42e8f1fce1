"""The one place that turns what went wrong into an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from septum.codes import BROKEN as BROKEN
from septum.codes import DEFECT as DEFECT
from septum.codes import INTERRUPTED as INTERRUPTED
from septum.codes import OK as OK
from septum.codes import UNDETERMINED as UNDETERMINED
from septum.codes import USAGE as USAGE
from septum.errors import EndlessLoop, InputError


class Interrupted(Exception):
    """Ctrl-C, on its way through who would say nothing about it."""


def guarded(command: Callable[[], None]) -> int:
    """Run `command`; returns the exit code. SystemExit passes its own code through.

    InputError, or an error or an endless loop in a user's own design, is one sentence on stderr and
    2; an interrupt is 130; anything else that escapes is a defect of Septum: 70, with the traceback
    and a word about it.
    """
    try:
        command()
    except SystemExit as stop:
        if stop.code is None:
            return OK
        return stop.code if isinstance(stop.code, int) else USAGE
    except InputError as error:
        print(f"septum: {error}", file=sys.stderr)
        return USAGE
    except EndlessLoop as endless:
        print(f"septum: {endless}", file=sys.stderr)
        return USAGE
    except (KeyboardInterrupt, Interrupted):
        print("septum: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except Exception as error:
        sentence = _blame(error)
        if sentence:
            print(f"septum: {sentence}", file=sys.stderr)
            return USAGE
        traceback.print_exc()
        print(
            "septum: this is a defect of Septum, not of the model that it ran or of your input; "
            "please report it with the text above and the command line",
            file=sys.stderr,
        )
        return DEFECT
    return OK


def _blame(error: Exception) -> str:
    """What a user's own design did wrong, when one is loaded and it did."""
    own = sys.modules.get("septum.designs.own")
    return str(own.blame(error)) if own is not None else ""
