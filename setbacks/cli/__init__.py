"""The command line: which commands there are, and the one place where an error becomes a line.

A command turns words into calls, and prints the result. What it does lives in the modules that it
calls, which it imports when it runs: `setbacks --help` loads none of them.
"""

from __future__ import annotations

import codecs
import io
import locale
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import cache, partial
from typing import Annotated

import typer

from setbacks import signals
from setbacks.cli import judging, loop, runs, setup, shipping
from setbacks.cli.options import listed
from setbacks.errors import SetbacksError

app = typer.Typer(
    help="Align a language model by having it analyze its own mistakes (arXiv 2310.10477).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# The groups of commands in `setbacks --help`.
RUN = "Run, whole or by stages"
MEASURE = "Evaluate, compare, study"
PEOPLE = "Judges and people"
SHIP = "Decide, try and ship"
MACHINE = "Set up"


def _version(wanted: bool) -> None:
    if wanted:
        from setbacks import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show the logs of libraries too (anywhere in the line)."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the line).")
    ] = False,
) -> None:
    pass


app.command(rich_help_panel=RUN)(runs.run)
for _name in runs.STAGES:
    app.command(_name, rich_help_panel=RUN)(runs.stage(_name))
app.command(rich_help_panel=MEASURE, cls=listed("judges"))(runs.evaluate)
app.command(rich_help_panel=MEASURE, cls=listed("methods"))(runs.compare)
app.command(rich_help_panel=MEASURE, cls=listed("studies"))(runs.study)
app.command(rich_help_panel=PEOPLE, cls=listed("judges"))(judging.calibrate)
app.add_typer(judging.review, name="review", rich_help_panel=PEOPLE)
app.command(rich_help_panel=MEASURE, cls=listed("judges"))(loop.replay)
app.command(rich_help_panel=MEASURE)(loop.diff)
app.command(rich_help_panel=SHIP, cls=listed("judges"))(loop.harvest)
app.command("loop", rich_help_panel=SHIP)(loop.rounds)
app.command(rich_help_panel=SHIP)(loop.gate)
app.command(rich_help_panel=SHIP)(shipping.chat)
app.command(rich_help_panel=SHIP)(shipping.export)
app.command("list", rich_help_panel=MACHINE)(setup.list_)
app.command(rich_help_panel=MACHINE)(setup.words)
app.command(rich_help_panel=MACHINE)(setup.new)
app.command(rich_help_panel=MACHINE)(setup.doctor)


def main() -> None:
    """Run the command line; every error is one line, unless --debug asks for the traceback."""
    _use_utf8()
    _prepare_streams()
    os.umask(os.umask(0o077) & 0o077)  # no umask may take our own files from us
    stopped = cache(partial(_fail, "stopped; progress is saved: run the same command to resume"))
    signals.handle(lambda: stopped(143))
    debug, verbose = "--debug" in sys.argv, "--verbose" in sys.argv
    sys.argv = [word for word in sys.argv if word not in ("--debug", "--verbose")]
    logging.getLogger("setbacks").setLevel(logging.INFO)
    if verbose:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level="INFO", force=True)
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    else:  # our own lines alone: libraries print theirs by themselves
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("setbacks: %(message)s"))
        logging.getLogger("setbacks").addHandler(handler)
        # It warns where it cannot keep its settings, of which we have none.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's own word for Ctrl-C
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process on the spot, and without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = stopped(130)
    except signals.Terminated:
        code = stopped(143)
    except SetbacksError as error:
        if debug:
            raise
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:  # who read the output has left, as `| head` does
        code = 1
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself was wrong
            message = error.format_message()
            context = getattr(error, "ctx", None)
            more = f" (see {context.command_path} --help)" if context else ""
            code = _fail(message + more, 2) if message else 2
        elif debug:
            raise
        else:
            reason = " ".join(str(error).split())[:300]
            code = _fail(
                f"{type(error).__name__}: {reason} (progress is saved; --debug shows more)", 1
            )
    sys.exit(_flushed(code if isinstance(code, int) else 0))


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding.

    Libraries read and write text files in the locale's encoding, and so do file names. The mode,
    which is the default from Python 3.15 on (PEP 686), can only be chosen when Python starts.
    """
    wanted = os.environ.get("PYTHONUTF8") == "1"  # then it was tried already
    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if os.name == "posix" and encoding != "utf-8" and not wanted:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _prepare_streams() -> None:
    """Have something behind each standard stream that takes every character."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        stream = getattr(sys, name)
        if stream is None:  # closed; else the next file that is opened takes its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  it stays
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flushed(code: int) -> int:
    """Write out what was printed: a full disk or a closed pipe shows here, not in Python's exit."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if code == 0 and not isinstance(error, BrokenPipeError):
            _fail(f"the output cannot be written ({error.strerror})", 1)
        return code or 1
    return code


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"setbacks: {line}\n".encode("utf-8", "replace").decode("utf-8"))
    return code
