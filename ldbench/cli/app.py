"""The command line: ``ldbench run | report | compare | verify | pack | profile | list | doctor``. Torch is imported only by what trains."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ldbench.cli.options import HELP, PROFILE_HELP, field_options
from ldbench.errors import UserError
from ldbench.training.interrupts import Interrupted

app = typer.Typer(
    name="ldbench",
    help="Train CNNs with and without layer dropping and measure what it saves: time, energy, FLOPs and accuracy.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Typer carries Click inside or beside it, depending on its version; its own exceptions lead to the common base.
UsageError: Any = typer.BadParameter.__mro__[1]

PLACE = "Results folder of a run, or a file that pack made of one."
LONGEST = 1000  # characters of an error

Out = Annotated[Path | None, typer.Option(help="Results folder; finished cells in it are not run again.")]


@app.command()
@field_options(HELP)
def run(
    experiment: Annotated[str | None, typer.Argument(help="TOML or JSON file, or a shipped suite by name.")] = None,
    *,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Option of a method: learn-and-drop.patience=3.")
    ] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and their cost, train nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the table alone.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    **fields: Any,
) -> None:
    """Train every cell of a grid (model x data set x method x seed), print the table and write the report.

    Without an experiment file, a --model or a --dataset this is the quick start on the embedded digits.
    """
    from ldbench.cli.commands import run_command
    from ldbench.experiment.options import experiment_from_options

    chosen, name = experiment_from_options(experiment, _given(fields), set_ or [])
    place = out or Path("ldbench-results") / name
    raise typer.Exit(run_command(chosen, place, dry_run=dry_run, quiet=quiet, as_json=json_))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help=PLACE)],
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    all_figures: Annotated[bool, typer.Option("--all-figures", help="Draw every figure of a large grid.")] = False,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Print the table alone, as latex, markdown, csv or json; nothing is written."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of that table: accuracy,full,time; an unknown one names them all.")
    ] = None,
) -> None:
    """Print the table of a results folder and write its HTML page and CSV files."""
    from ldbench.cli.commands import export_command, report_command

    if format_ is None and columns is None:
        raise typer.Exit(report_command(directory, as_json=json_, all_figures=all_figures))
    if json_ or all_figures:
        raise UserError("--format prints one table and writes no page: leave out --json and --all-figures")
    if format_ is None:
        raise UserError("--columns goes with --format latex, markdown, csv or json")
    raise typer.Exit(export_command(directory, format_, columns))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help=PLACE)],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Hold two results folders against each other, method by method and seed by seed: the second against the first."""
    from ldbench.cli.commands import compare_command

    raise typer.Exit(compare_command(first, second, as_json=json_))


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help=PLACE)],
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check every file of a results folder against its checksum. Exit code 1 when one is damaged."""
    from ldbench.cli.commands import verify_command

    raise typer.Exit(verify_command(directory, as_json=json_))


@app.command()
def pack(
    directory: Annotated[Path, typer.Argument(help="Results folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The file; FOLDER.jsonl beside the folder by default.")] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Keep the scores of every check too; they are large.")
    ] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="Leave out epochs and tuning runs too, which no table needs; outcomes stay.")
    ] = False,
) -> None:
    """Write a results folder as one text file that report and verify read alike: records without weights."""
    from ldbench.cli.commands import pack_command

    raise typer.Exit(pack_command(directory, out, scores=scores, brief=brief))


@app.command()
@field_options(PROFILE_HELP)
def profile(
    model: Annotated[str, typer.Option(help=HELP["model"])] = "resnet18",
    dataset: Annotated[str, typer.Option(help="Data set whose images are used.")] = "digits",
    *,
    energy: Annotated[bool, typer.Option("--energy", help="Meter every stage and cut too; some minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for profile.json and profile.svg.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
    **fields: Any,
) -> None:
    """Measure each stage of a network and tell what every possible cut would save, cost and pay back."""
    from ldbench.cli.profile import profile_command
    from ldbench.experiment.validation import experiment_from_dict

    chosen = experiment_from_dict({"model": model, "dataset": dataset, **_given(fields)})
    raise typer.Exit(profile_command(chosen, out, as_json=json_, metered=energy))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Try what this machine can do, and say how to close each gap. Exit code 0 when training works, 1 when not."""
    from ldbench.cli.commands import doctor_command

    raise typer.Exit(doctor_command(as_json=json_))


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="models, datasets, methods or suites.")],
    json_: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """What can be named: models, data sets, methods or suites, each with a line about it."""
    from ldbench.cli.commands import list_command

    raise typer.Exit(list_command(kind, as_json=json_))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            print(f"ldbench {metadata.version('ldbench')}")
        except metadata.PackageNotFoundError:
            print("ldbench, from a folder that is not installed")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command."""
    del debug, version  # read in main, where errors end up, and by its callback


def main() -> None:
    """Entry point: one line and exit code 2 for what the user can put right."""
    debug = "--debug" in sys.argv
    if any("\0" in argument for argument in sys.argv):
        sys.exit(_fail("an argument holds a NUL character", debug))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    arguments = arguments or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path need not be text, nor the terminal able to show it
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments, standalone_mode=False)
    except UserError as error:
        code = _fail(str(error), debug)
    except UsageError as error:
        code = _fail(error.format_message(), debug)
    except OSError as error:  # a path that cannot be what it was given for
        code = _fail(f"{error.filename or 'a file'}: {error.strerror or error}", debug)
    except Interrupted as stopped:
        code = stopped.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code in (130, 143):  # Typer itself may have turned a Ctrl-C into the number
        print("ldbench: interrupted; what is done is kept, the same command goes on", file=sys.stderr)
    sys.exit(code)


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(message.split()))
    if len(text) > LONGEST:  # what is wrong stands first, the cure last
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    print(f"ldbench: {text}", file=sys.stderr)
    return 2
