"""The `septum` command without its subcommands."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

from septum.cli.exits import Interrupted, NobodyReads
from septum.cli.start import check_arguments


class Commands(typer.core.TyperGroup):
    """The subcommands; an interrupt, and a reader who is gone, go through to `guarded`."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> Any:
        """Raises InputError for arguments that are no text."""
        check_arguments(args)
        return super().make_context(info_name, args, *rest, **more)

    def invoke(self, ctx: Any) -> object:
        """Raises Interrupted and NobodyReads, of which typer knows nothing, where it would end
        without a word, or with the exit code of a broken promise."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None
        except BrokenPipeError as error:
            raise NobodyReads from error  # which says where, if a user's own design raised it


app = typer.Typer(
    name="septum",
    help="A TDX host that runs in a Python process: boot a TD, look at it, hold it to account.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    rich_markup_mode=None,
    cls=Commands,
)
module_app = typer.Typer(
    help="The TDX module by itself.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(module_app, name="module")


def _version(asked: bool) -> None:
    if asked:
        from septum import __version__

        print(f"septum {__version__}")
        raise typer.Exit


@app.callback()
def septum(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and leave.")
    ] = False,
) -> None:
    """A TDX host that runs in a Python process."""
