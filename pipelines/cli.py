"""The command line, `worldloom`. `pipelines.errors` has the exit codes.

Each command is a module of `pipelines.commands` under its own name. Commands that need torch import it when they are
called: it takes 2 s, which commands that answer from tables need not wait for.
"""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from cluster.stores import hide_credentials
from cluster.telemetry import configure_logging, tell
from pipelines.commands import (
    audit,
    card,
    curate,
    demo,
    demo_footage,
    doctor,
    evaluate,
    export,
    export_model,
    forget,
    gc,
    index,
    inspect,
    launch,
    ledger,
    plan,
    quarantine,
    report,
    roundtrip,
    run,
    sample,
    schema,
    status,
    steps,
    train,
    train_autoencoder,
    validate,
    verify,
    whatif,
)
from pipelines.errors import (
    BAD_INPUT,
    STOPPED,
    UNEXPECTED,
    check_arguments,
    escape_what_terminals_cannot_show,
    explain,
    how_to_report,
)

COMMANDS = {
    "Run a recipe": (run, curate, train, sample, evaluate, launch),
    "Look before and after": (
        validate,
        plan,
        status,
        whatif,
        steps,
        schema,
        ledger,
        report,
        audit,
        verify,
        index,
        inspect,
        quarantine,
    ),
    "Give away and clean up": (export, export_model, card, forget, gc),
    "Autoencoders": (train_autoencoder, roundtrip),
    "Get started": (demo, demo_footage, doctor),
}
"""Modules of commands by the heading under which `worldloom --help` lists them."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw video in, a trained text-to-video model out. Exit codes: 0 done, 1 something failed, 2 bad input, "
    "70 an unexpected error, 130 stopped by Ctrl-C or SIGTERM.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"worldloom {importlib.metadata.version('worldloom')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options without a command."""


for heading, modules in COMMANDS.items():
    for module in modules:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        app.command(name, rich_help_panel=heading)(module.command)


def main() -> NoReturn:
    """Run the command line: turn errors into messages and exit codes."""
    escape_what_terminals_cannot_show()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that everything is closed
    arguments = sys.argv[1:]
    try:
        configure_logging()
        check_arguments(arguments)
        app(standalone_mode=True)
    except (KeyboardInterrupt, SystemExit) as ending:
        # Typer turns Ctrl-C in a command into an exit, without a word.
        # A connected Ray turns SIGTERM into an exit with the signal's number.
        if isinstance(ending, SystemExit) and ending.code not in (STOPPED, signal.SIGTERM):
            raise
        tell("stopped; finished work is kept, and the same command resumes", logging.WARNING)
        sys.exit(STOPPED)
    except Exception as error:  # explained, or printed with its traceback
        if explanation := explain(error):
            kind = "error" if explanation.exit_code == BAD_INPUT else "failed"
            tell(hide_credentials(explanation.text), logging.ERROR, kind)
            sys.exit(explanation.exit_code)
        report = "".join(traceback.format_exception(error)) + how_to_report(arguments)
        tell(hide_credentials(report), logging.CRITICAL)
        sys.exit(UNEXPECTED)
    raise AssertionError("typer exits by itself")


if __name__ == "__main__":
    main()
