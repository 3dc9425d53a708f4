"""The application, and how it reports errors."""

import sys
import warnings
from typing import Annotated, Any

import typer

from offkey.errors import OffkeyError

__all__ = ["app", "main"]

INTERRUPTED = 130
LIBRARIES = r"(transformers|peft|torch)\."

# typer carries its own copy of click or uses the installed one, depending on its version.
_Misuse: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="offkey",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
) -> None:
    """Hear when a neural network is off-key: mechanistic anomaly detection.

    The help of every verb has an example: [bold]offkey detect --help[/bold].
    """
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(f"offkey {installed('offkey')}")
        except PackageNotFoundError:
            typer.echo("offkey, not installed")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; a user's mistake is reported in one line with exit status 2."""
    try:
        with warnings.catch_warnings():  # users can do nothing about what libraries will change
            warnings.filterwarnings("ignore", category=FutureWarning, module=LIBRARIES)
            status = app(arguments, prog_name="offkey", standalone_mode=False)
    except OffkeyError as error:
        raise _failure(str(error)) from None
    except _Misuse as error:
        raise _failure(_misuse(error)) from None
    except KeyboardInterrupt:
        status = INTERRUPTED
    except typer.Abort:
        status = 1
    if status == INTERRUPTED:
        print("stopped; give the same command again to resume the run", file=sys.stderr)
    if isinstance(status, int) and status:
        raise SystemExit(status)


def _failure(text: str) -> SystemExit:
    print("error: " + " ".join(text.split()), file=sys.stderr)

    return SystemExit(2)


def _misuse(error: Any) -> str:
    """One line for an option or verb that is unknown, missing or wrong."""
    where = error.ctx.command_path if getattr(error, "ctx", None) else "offkey"
    message = error.format_message().strip().rstrip(".")
    end = "" if message.endswith("?") else "."

    return f"{where}: {message[:1].lower()}{message[1:]}{end} Help: {where} --help"
