"""The command `mobilenets`: its verbs, and how an error becomes one sentence."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import Annotated

import typer

from mobilenets.cli.benchmark import benchmark
from mobilenets.cli.convert import convert
from mobilenets.cli.cost import cost
from mobilenets.cli.demo import demo
from mobilenets.cli.doctor import doctor
from mobilenets.cli.evaluate import evaluate
from mobilenets.cli.explore import explore
from mobilenets.cli.export import export
from mobilenets.cli.output import note
from mobilenets.cli.paper import paper
from mobilenets.cli.pick import pick
from mobilenets.cli.predict import predict
from mobilenets.cli.profile import profile
from mobilenets.cli.quantise import quantise
from mobilenets.cli.reproduce import reproduce
from mobilenets.cli.search import search
from mobilenets.cli.serve import serve
from mobilenets.cli.several import spread
from mobilenets.cli.shard import shard
from mobilenets.cli.share import pull, push
from mobilenets.cli.train import train
from mobilenets.cli.web import web
from mobilenets.cli.weights import weights
from mobilenets.data.progress import say
from mobilenets.training.interrupt import ProcessLostError

# What sysexits.h calls a failure for a time: try again.
TRY_AGAIN = 75

app = typer.Typer(
    help="Image models that fit a phone: count, pick, train, prove, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: rich's markup costs 0.15 s at every start.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mobilenets {version('mobilenets')}")
        raise typer.Exit()


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Image models that fit a phone: count, pick, train, prove, export."""


for verb in (
    cost,
    pick,
    explore,
    doctor,
    convert,
    shard,
    train,
    evaluate,
    predict,
    search,
    export,
    quantise,
    web,
    benchmark,
    profile,
    serve,
    push,
    pull,
    demo,
    reproduce,
):
    app.command()(verb)
app.add_typer(paper, name="paper")
app.add_typer(weights, name="weights")


def main() -> None:
    """Run one command; exit 0 when done, 1 when the answer is no, 2 when the input is wrong, 75 when a peer is lost."""
    # Pillow's notes on odd files are not sentences for a user; what can't be read is said by us.
    warnings.filterwarnings("ignore", module="PIL")
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code.

    Bad input is a `ValueError` or an `OSError` with a sentence for the user, and so is an
    `ImportError` about a missing extra; anything else is a fault of ours and keeps its traceback.
    """
    try:
        app(spread(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (ValueError, OSError) as error:
        note(f"mobilenets: {_sentence(error)}")
        return 2
    except ProcessLostError as error:
        say(f"mobilenets: {error}", each_machine=True)
        return TRY_AGAIN
    except RuntimeError as error:
        # PyTorch raises it in the middle of anything.
        if "DataLoader worker" not in str(error):
            raise
        note(
            "mobilenets: a process that read images was killed, most often for want of memory: free some and start "
            "again; training goes on with --resume"
        )
        return 2
    except ImportError as error:
        # Python names the module that a fault of ours asks for; a missing extra has a sentence only.
        if error.name is not None:
            raise
        note(f"mobilenets: {error}")
        return 2
    return 0


def _sentence(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk of {error.filename or 'the output folder'}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
