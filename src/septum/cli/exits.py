"""The one place that turns what went wrong into an exit code."""

from __future__ import annotations

import errno
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
from septum.stdout import write_no_more

NAME_SHOWN_MAX = 60


class Interrupted(Exception):
    """Ctrl-C, on its way through who would say nothing about it."""


class NobodyReads(Exception):
    """Who reads our output has gone: on its way through who would call that a broken promise."""


def guarded(command: Callable[[], None]) -> int:
    """Run `command`, and write out what it printed; returns the exit code. SystemExit passes its
    own code through.

    InputError, or an error or an endless loop in a user's own design, is one sentence on stderr and
    2, as is a disk that has no room for the output; in Python's development mode (-X dev) with the
    traceback of such an error before it. An interrupt is 130; a reader who has gone wants no more:
    0, where the exit code says nothing of a run (see `stdout.read_or_not`). Anything else that
    escapes is a defect of Septum: 70, with the traceback and a word about it.
    """
    code = _code_of(command)
    try:
        sys.stdout.flush()
    except ValueError:  # a user's own design has closed it
        return code or DEFECT
    except OSError as error:
        write_no_more()
        return code if isinstance(error, BrokenPipeError) else _no_room(error)
    return code


def _code_of(command: Callable[[], None]) -> int:
    try:
        _blamed(command)
    except SystemExit as stop:
        if stop.code is None:
            return OK
        return stop.code if isinstance(stop.code, int) else USAGE
    except (InputError, EndlessLoop) as error:
        if sys.flags.dev_mode and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        # A name may have an end of line in it, and this stays one sentence.
        print("septum: " + str(error).replace("\n", "\\n"), file=sys.stderr)
        return USAGE
    except (KeyboardInterrupt, Interrupted):
        print("septum: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, NobodyReads):
        write_no_more()
        return OK
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            write_no_more()
            return _no_room(error)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            print(
                f"septum: {_shortened(error.filename)}: no file's name can be as long; give a"
                " shorter one",
                file=sys.stderr,
            )
            return USAGE
        traceback.print_exc()
        print(_defect_text(), file=sys.stderr)
        return DEFECT
    return OK


def _shortened(name: object) -> str:
    return f"{str(name)[:NAME_SHOWN_MAX]}..."


def _defect_text() -> str:
    own = sys.modules.get("septum.designs.own")
    files = own.loaded_files() if own is not None else []
    if files:
        return (
            f"septum: a design of your own was loaded ({', '.join(files)}), so look there first: no"
            " function of it was at work when this went wrong, but what it left behind may be the"
            " cause; if it is not, this is a defect of Septum: please report it with the text"
            " above, the file and the command line"
        )
    return (
        "septum: this is a defect of Septum, not of the model that it ran or of your input;"
        " please report it with the text above and the command line"
    )


def _no_room(error: OSError) -> int:
    said = error.strerror or str(error)
    print(f"septum: The output could not be written: {said}; send it elsewhere.", file=sys.stderr)
    return USAGE


def _blamed(command: Callable[[], None]) -> None:
    """Run `command`. Raises InputError in place of whatever a user's own design raised: sys.exit()
    in it ends no command as if all were well."""
    try:
        command()
    except (InputError, EndlessLoop, KeyboardInterrupt, Interrupted):
        raise
    except BaseException as error:
        own = sys.modules.get("septum.designs.own")
        sentence = str(own.blame(error)) if own is not None else ""
        if sentence:
            raise InputError(sentence) from error
        raise
