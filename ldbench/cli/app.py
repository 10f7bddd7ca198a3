"""The command line: ``ldbench run | report | verify | profile | doctor``. Torch is imported only by what trains."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ldbench.errors import UserError
from ldbench.training.interrupts import Interrupted

app = typer.Typer(
    name="ldbench", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Train CNNs with and without layer dropping and measure what it saves: time, energy, FLOPs and accuracy.",
)  # fmt: skip

# Typer carries Click inside or beside it, depending on its version; its own exceptions lead to the common base.
UsageError: Any = typer.BadParameter.__mro__[1]

LONGEST = 1000  # characters of an error

Out = Annotated[Path | None, typer.Option(help="Results folder; finished cells in it are not run again.")]


@app.command()
def run(
    experiment: Annotated[str | None, typer.Argument(help="TOML or JSON file, or a shipped suite by name.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Architecture of torchvision, or package.module:factory, whose code is then run.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="digits, mnist, fashion-mnist, cifar10, imagenette, folder:PATH or synthetic:CxHxW:CLASSES:N; mnist[5-9] for some classes.")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="scratch, fine-tune (from the weights of --init or --pretrain-dataset), online (data in chunks) or online-fine-tune.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="full, short, learn-and-drop, freeze, schedule, cost-benefit; freezeout, freezeout-linear, autofreeze, egeria, apf, each also as NAME+store; stochastic-depth, progressive-depth.")] = None,
    seeds: Annotated[str | None, typer.Option(help="How many seeds (0, 1, ...), or the seeds themselves: 3,5,7.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of full training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per minibatch.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Base learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, constant or step.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, flip, crop or flip+crop.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    channels_last: Annotated[bool | None, typer.Option("--channels-last/--no-channels-last", help="Memory format of activations.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Compile the live stages with torch.compile.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Training images, a subset balanced over the classes.")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test images.")] = None,
    val_size: Annotated[int | None, typer.Option(help="Validation images cut from the training images.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    width: Annotated[float | None, typer.Option(help="Channel multiplier of VGG and ResNet.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout probability of the head.")] = None,
    eval_every: Annotated[str | None, typer.Option(help="Epochs between evaluations, or last.")] = None,
    short_budgets: Annotated[str | None, typer.Option(help="Shares of full training for method short: 0.25,0.5,0.75.")] = None,
    save_model: Annotated[str | None, typer.Option(help="none or final.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the data sets.")] = None,
    download: Annotated[bool | None, typer.Option("--download/--no-download", help="Fetch a data set that is missing.")] = None,
    cache_dtype: Annotated[str | None, typer.Option(help="Activation store: fp32, bf16, fp16 or int8.")] = None,
    cache_budget: Annotated[str | None, typer.Option(help="Store size allowed on device[,host[,disk]], such as 4GiB,16GiB.")] = None,
    check_every: Annotated[int | None, typer.Option(help="Steps between two checks of the scores.")] = None,
    cost_table: Annotated[str | None, typer.Option(help="Cost table (file or folder) of an earlier run to decide by.")] = None,
    checkpoint_minutes: Annotated[float | None, typer.Option(help="Minutes between checkpoints; by default 5, or more where writing one takes over 1 % of the time.")] = None,
    init: Annotated[str | None, typer.Option(help="Weights to fine-tune: a .safetensors file, or torchvision for the published ones.")] = None,
    pretrain_dataset: Annotated[str | None, typer.Option(help="Data set to make the weights to fine-tune on, once per model and seed.")] = None,
    pretrain_epochs: Annotated[int | None, typer.Option(help="Epochs of that; as many as of training by default.")] = None,
    pretrain_size: Annotated[int | None, typer.Option(help="Images of that.")] = None,
    chunks: Annotated[int | None, typer.Option(help="Chunks in which the data of scenario online arrive; 5 by default.")] = None,
    memory: Annotated[int | None, typer.Option(help="Images of earlier chunks that are remembered; as many as a chunk holds by default.")] = None,
    stream: Annotated[str | None, typer.Option(help="Order of arrival: shuffled or by-class.")] = None,
    stream_schedule: Annotated[str | None, typer.Option(help="What the learning rate's schedule spans: the whole stream, or each chunk anew (chunk).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Option of a method: learn-and-drop.patience=3.")] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and their cost, train nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the table alone.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:  # fmt: skip
    """Train every cell of a grid (model x data set x method x seed), print the table and write the report.

    Without an experiment file, a --model or a --dataset this is the quick start on the embedded digits.
    """
    options = {key: value for key, value in locals().items() if value is not None}
    for own in ("experiment", "out", "dry_run", "quiet", "json_", "set_"):
        options.pop(own, None)
    from ldbench.cli.commands import run_command
    from ldbench.experiment.options import experiment_from_options

    chosen, name = experiment_from_options(experiment, options, set_ or [])
    raise typer.Exit(
        run_command(chosen, out or Path("ldbench-results") / name, dry_run=dry_run, quiet=quiet, as_json=json_)
    )


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Results folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    all_figures: Annotated[bool, typer.Option("--all-figures", help="Draw every figure of a large grid.")] = False,
) -> None:
    """Print the table of a results folder and write its HTML page and CSV files."""
    from ldbench.cli.commands import report_command

    raise typer.Exit(report_command(directory, as_json=json_, all_figures=all_figures))


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="Results folder of a run.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check every file of a results folder against its checksum. Exit code 1 when one is damaged."""
    from ldbench.cli.commands import verify_command

    raise typer.Exit(verify_command(directory, as_json=json_))


@app.command()
def profile(
    model: Annotated[str, typer.Option(help="Architecture of torchvision, or package.module:factory, whose code is then run.")] = "resnet18",
    dataset: Annotated[str, typer.Option(help="Data set whose images are used.")] = "digits",
    batch_size: Annotated[int | None, typer.Option(help="Samples per minibatch.")] = None,
    width: Annotated[float | None, typer.Option(help="Channel multiplier of VGG and ResNet.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    train_size: Annotated[int | None, typer.Option(help="Training images.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the data sets.")] = None,
    download: Annotated[bool | None, typer.Option("--download/--no-download", help="Fetch a data set that is missing.")] = None,
    cache_dtype: Annotated[str | None, typer.Option(help="Activation store: fp32, bf16, fp16 or int8.")] = None,
    cache_budget: Annotated[str | None, typer.Option(help="Store size allowed on device[,host[,disk]].")] = None,
    energy: Annotated[bool, typer.Option("--energy", help="Meter every stage and cut too; some minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for profile.json and profile.svg.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:  # fmt: skip
    """Measure each stage of a network and tell what every possible cut would save, cost and pay back."""
    options = {
        key: value for key, value in locals().items() if value is not None and key not in ("out", "json_", "energy")
    }
    from ldbench.cli.profile import profile_command
    from ldbench.experiment.validation import experiment_from_dict

    raise typer.Exit(profile_command(experiment_from_dict(options), out, as_json=json_, metered=energy))


@app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Try what this machine can do, and say how to close each gap. Exit code 0 when training works, 1 when not."""
    from ldbench.cli.commands import doctor_command

    raise typer.Exit(doctor_command(as_json=json_))


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every command."""
    del debug  # read in main, where errors end up


def main() -> None:
    """Entry point: one line and exit code 2 for what the user can put right."""
    debug = "--debug" in sys.argv
    if any("\0" in argument for argument in sys.argv):
        sys.exit(_fail("an argument holds a NUL character", debug))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
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
