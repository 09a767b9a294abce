"""The command line as a process: `gflow ...` and `python -m gflow ...`, with their exit codes.

What the commands are is declared in `gflow.commands.command_line`.
"""

import errno
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click

from gflow.commands.command_line import cli
from gflow.commands.reading import UserError, warning_sentence
from gflow.commands.telling import INTERRUPTED

__all__ = ["cli", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code. A user's mistake is a message, never a traceback, and a
    warning is a sentence, without a line of source.
    """
    before, warnings.formatwarning = warnings.formatwarning, warning_sentence
    try:
        with _ended_as_by_ctrl_c():
            code: Any = cli.main(arguments, prog_name="gflow", standalone_mode=False)
        return code or 0
    except UserError as error:
        click.echo(f"gflow: {error}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("gflow: interrupted.", err=True)
        return INTERRUPTED
    except OSError as error:
        if not _output_is_full(error):
            raise
        click.echo(f"gflow: the output cannot be written: {error.strerror}.", err=True)
        return 1
    finally:
        warnings.formatwarning = before


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Within, what ends a process politely is an interrupt: SIGTERM, of `kill` and of schedulers of
    clusters, and SIGHUP, of a terminal that is closed. So what was computed is kept, and workers
    end with the job. A signal that is ignored, as by `nohup`, stays so.
    """
    signals = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    main_thread = threading.current_thread() is threading.main_thread()
    taken = [
        number
        for number in signals
        if main_thread and number is not None and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _output_is_full(error: OSError) -> bool:
    """Whether it is of the standard output, which names no file: of a full disk, say.

    What could not be written would be tried again as the process ends: it is let go.
    """
    if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return False
    with suppress(OSError):
        sys.stdout.close()
    return True


if __name__ == "__main__":
    sys.exit(main())
