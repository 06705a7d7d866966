"""The command line, `worldloom`. Exit codes: 0 done, 1 something failed, 2 bad input, 130 stopped by Ctrl-C.

Each command is a module of `pipelines.commands` under its own name. Commands that need torch import it when they are
called: it takes 2 s, which commands that answer from tables need not wait for.
"""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

import typer
from rich.markup import escape

from cluster.config import ConfigError
from cluster.telemetry import configure_logging, console
from pipelines.commands import (
    audit,
    curate,
    demo_footage,
    doctor,
    export,
    forget,
    gc,
    ledger,
    plan,
    quarantine,
    report,
    roundtrip,
    run,
    sample,
    schema,
    steps,
    train,
    train_autoencoder,
    validate,
    verify,
    whatif,
)
from training.data.footer import DamagedError

COMMANDS = {
    "Run a recipe": (run, curate, train, sample),
    "Look before and after": (validate, plan, whatif, steps, schema, ledger, report, audit, verify, quarantine),
    "Give away and clean up": (export, forget, gc),
    "Autoencoders": (train_autoencoder, roundtrip),
    "Get started": (demo_footage, doctor),
}
"""Modules of commands by the heading under which `worldloom --help` lists them."""
PACKAGES = ("cluster", "captioning", "training", "pipelines")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw video in, a trained text-to-video model out. Exit codes: 0 done, 1 something failed, 2 bad input.",
)
for heading, modules in COMMANDS.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        app.command(name, rich_help_panel=heading)(module.command)


def _print_error(kind: str, message: str) -> None:
    # Paths may hold what looks like markup.
    console.print(f"[bold red]{kind}[/] {escape(message)}", highlight=False, soft_wrap=True)


def _is_ours(error: BaseException) -> bool:
    """Return whether our code raised an error, about an input. One that a library raised needs its traceback."""
    frames = traceback.walk_tb(error.__traceback__)
    names = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    return names[-1].partition(".")[0] in PACKAGES


def main() -> NoReturn:
    """Run the command line: turn errors into messages and exit codes."""
    configure_logging()
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        _print_error("error", str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped; finished work is kept, and the same command resumes")
        sys.exit(130)
    except (RuntimeError, DamagedError) as error:
        _print_error("failed", str(error))
        sys.exit(1)
    except ValueError as error:
        if not _is_ours(error):
            raise
        _print_error("error", str(error))
        sys.exit(2)
    except OSError as error:
        # A missing folder, missing rights, a full disk, an object store that cannot be reached.
        _print_error("failed", f"{type(error).__name__}: {error}")
        sys.exit(1)
    raise AssertionError("typer exits by itself")


if __name__ == "__main__":
    main()
