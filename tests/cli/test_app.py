"""The command line as a user meets it: whole runs, and one line with a cure for everything that is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldbench import __version__
from ldbench.cli.app import main
from ldbench.cli.commands import list_command
from ldbench.cli.listing import KINDS
from ldbench.data.names import DATASET_FORMS, DATASET_NAMES
from ldbench.experiment.files import read_experiment, suite_names
from ldbench.experiment.validation import experiment_from_dict
from ldbench.policies.registry import method_names

SMALL = ["--dataset", "digits", "--model", "resnet18", "--width", "0.1", "--image-size", "16"]
SMALL += ["--train-size", "200", "--test-size", "100", "--epochs", "4", "--batch-size", "50"]
PROMISED = (
    "schema_version",
    "model",
    "dataset",
    "method",
    "budget",
    "seed",
    "status",
    "test_accuracy",
    "train_seconds",
    "eval_seconds",
    "cache_build_seconds",
    "forward_flops",
    "backward_flops",
    "forward_flops_full",
    "energy_joules",
    "energy_unavailable_reason",
    "dropped_stages",
    "stages",
    "environment",
)


def ldbench(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ldbench.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=folder)


def in_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    from ldbench.cli import main

    monkeypatch.setattr(sys, "argv", ["ldbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One small grid with every method, run from the shell."""
    folder = tmp_path_factory.mktemp("results")
    methods = ["full", "short", "learn-and-drop", "freeze", "freezeout", "schedule"]
    options = [part for method in methods for part in ("--method", method)]
    options += ["--set", "schedule.drops=[[0.25,0.3],[0.5,0.6]]", "--set", "learn-and-drop.remaining=1.0"]
    done = ldbench("run", *SMALL, *options, "--save-model", "final", "--out", "results", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "results", done.stdout


def load(results: Path) -> dict[str, dict[str, Any]]:
    loaded = [json.loads(path.read_text()) for path in sorted(results.glob("cells/*/result.json"))]
    return {f"{r['method']}{r['budget'] or ''}": r for r in loaded}


def test_a_grid_writes_a_record_per_cell_with_every_promised_field(results: tuple[Path, str]) -> None:
    records = load(results[0])
    shortened = {f"short{budget}" for budget in (0.125, 0.25, 0.375, 0.5, 0.75)}
    assert set(records) == {"full", *shortened, "learn-and-drop", "freeze", "freezeout", "schedule"}
    for record in records.values():
        assert record["status"] == "finished"
        assert set(PROMISED) <= set(record)
        assert record["energy_joules"] is None
        assert record["energy_unavailable_reason"]
    for name in ("config.json", "epochs.jsonl", "result.json", "model.safetensors"):
        assert len(list(results[0].glob(f"cells/*/{name}"))) == len(records)
    assert len(list(results[0].glob("cells/*/scores.jsonl"))) == len(records)
    assert (results[0] / "report" / "index.html").stat().st_size > 10_000


def test_what_was_skipped_is_what_was_not_counted(results: tuple[Path, str]) -> None:
    records = load(results[0])
    full, short, stored, frozen = (records[name] for name in ("full", "short0.5", "schedule", "freezeout"))
    assert full["forward_flops"] == full["forward_flops_full"]
    assert full["backward_flops"] == full["backward_flops_full"]
    assert short["forward_flops"] * 2 == full["forward_flops"]
    assert stored["dropped_stages"]
    assert stored["store_bytes"]
    assert stored["cache_build_flops"]
    assert frozen["forward_flops"] == full["forward_flops"]  # freezing cuts no forward FLOPs
    assert frozen["backward_flops"] < full["backward_flops"]
    for record in records.values():
        for way in ("forward", "backward"):
            assert sum(stage[f"executed_{way}_flops"] for stage in record["stages"]) == record[f"{way}_flops"]


def test_freeze_replays_the_drops_and_ends_at_the_same_weights(results: tuple[Path, str]) -> None:
    from safetensors.torch import load_file

    records = load(results[0])
    dropped, frozen = records["learn-and-drop"], records["freeze"]
    assert dropped["drops"]
    steps = [[(drop["step"], drop["cut"]) for drop in record["drops"]] for record in (dropped, frozen)]
    assert steps[0] == steps[1]
    weights = [load_file(results[0] / "cells" / str(r["cell_id"]) / "model.safetensors") for r in (dropped, frozen)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)
    assert frozen["test_accuracy"] == pytest.approx(dropped["test_accuracy"], abs=0.02)


def test_the_saved_model_loads_into_the_plain_module_and_repeats_its_accuracy(results: tuple[Path, str]) -> None:
    from safetensors.torch import load_file

    import ldbench
    from ldbench.data.datasets import load_dataset
    from ldbench.data.loader import ResidentSplit
    from ldbench.training.evaluate import evaluate
    from ldbench.training.optim import autocast_for

    record = load(results[0])["schedule"]
    folder = results[0] / "cells" / str(record["cell_id"])
    model = ldbench.build_model(json.loads((folder / "config.json").read_text()))
    assert type(model).__module__.startswith("torchvision")
    model.load_state_dict(load_file(folder / "model.safetensors"))
    data = load_dataset("digits", root=None, image_size=16, train_size=200, test_size=100)
    cpu = torch.device("cpu")
    accuracy, loss, _ = evaluate(model, ResidentSplit(data.test, data.mean, data.std, cpu), autocast_for("fp32", cpu))
    assert accuracy == record["test_accuracy"]
    assert loss == pytest.approx(record["test_loss"], rel=1e-5)


def test_finished_cells_are_skipped_and_the_report_repeats_the_table(results: tuple[Path, str], tmp_path: Path) -> None:
    config = read_experiment(str(results[0] / "experiment.json"))
    assert experiment_from_dict(config).to_dict() == config
    stamps = {path: path.stat().st_mtime_ns for path in results[0].glob("cells/*/result.json")}
    again = ldbench("run", results[0] / "experiment.json", "--out", results[0], folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "10 cells were finished already" in again.stdout
    assert stamps == {path: path.stat().st_mtime_ns for path in results[0].glob("cells/*/result.json")}
    shown = ldbench("report", results[0], folder=tmp_path)
    assert shown.returncode == 0
    assert "learn-and-drop" in shown.stdout


def test_a_table_for_a_paper_is_all_that_is_printed_and_nothing_is_written(
    results: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(results[0], tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    done = ldbench("report", "results", "--format", "latex", "--columns", "n,time", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("% needs ")
    assert done.stdout.endswith("\\end{longtable}\n")
    assert not (tmp_path / "results" / "report").exists()


def test_a_folder_beside_itself_is_the_same(results: tuple[Path, str], tmp_path: Path) -> None:
    done = ldbench("compare", results[0], results[0], "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["notes"] == []
    assert [line["same"] for line in told["lines"]] == [line["runs"] for line in told["lines"]]


def test_the_report_as_json_has_its_groups_first(results: tuple[Path, str], tmp_path: Path) -> None:
    shown = ldbench("report", results[0], "--json", folder=tmp_path)
    told = json.loads(shown.stdout)
    assert list(told) == ["report", "groups", "cells"]
    labels = {row["label"] for row in told["groups"]}
    drops = "schedule (drops=[[0.25, 0.3], [0.5, 0.6]])"
    assert labels == {"learn-and-drop (remaining=1.0)", "freeze", "freezeout", drops}
    assert {row["standing"] for row in told["groups"]} == {"exploratory"}
    assert len(told["cells"]) == 10


def test_two_runs_agree_in_everything_but_the_volatile_fields(results: tuple[Path, str], tmp_path: Path) -> None:
    from ldbench.records.cell_files import VOLATILE_FIELDS

    costs = ["--cost-table", results[0] / "costs"]
    experiment = ldbench(
        "run", results[0] / "experiment.json", *costs, "--out", tmp_path / "again", "--quiet", folder=tmp_path
    )
    assert experiment.returncode == 0, experiment.stderr

    def stable(record: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in record.items() if key not in VOLATILE_FIELDS}
        for name in ("drops", "declined"):
            rows = kept[name]
            kept[name] = [{k: v for k, v in row.items() if f"{name}.{k}" not in VOLATILE_FIELDS} for row in rows]
        return kept

    first, second = load(results[0]), load(tmp_path / "again")
    assert {k: stable(v) for k, v in first.items()} == {k: stable(v) for k, v in second.items()}
    assert set(VOLATILE_FIELDS) - {name for name in VOLATILE_FIELDS if "." in name} <= set(first["full"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--model", "resnet81"], ["resnet81", "resnet18"]),
        (["run", "--dataset", "fashion-mnits"], ["fashion-mnits", "fashion-mnist"]),
        (["run", "--method", "learn-and-dropp"], ["learn-and-dropp", "learn-and-drop"]),
        (["run", "--modle", "x"], ["--modle", "--model"]),
        (["run", "--dataset", "mnist", "--data-root", "nowhere"], ["nowhere", "--download"]),
        (["run", "absent.toml"], ["absent.toml", "quickstart"]),
        (["run", "--epochs", "many"], ["--epochs"]),
        (["run", "--seeds", "0"], ["--seeds"]),
        (["run", "--seeds", "a,b"], ["--seeds", "3,5,7"]),
        (["run", "--short-budgets", "0.5,2"], ["short_budgets"]),
        (["run", "--set", "patience=3"], ["--set", "METHOD.OPTION"]),
        (["run", "--set", "learn-and-drop.patient=3"], ["patient", "patience"]),
        (
            ["run", "--model", "vgg11", "--dataset", "digits", "--image-size", "8"],
            ["vgg11", "smallest that works is 32"],
        ),
        (["run", "--model", "densenet121", "--width", "0.5"], ["width"]),
        (["run", "--cache-budget", "0,0,0"], ["cache budget", "fits neither"]),
        (["run", "--cache-budget", "lots"], ["lots", "512MiB"]),
        (["run", "--method", "freeze"], ["freeze", "learn-and-drop"]),
        (["run", "--precision", "fp16", "--device", "cpu"], ["fp16", "bf16"]),
        (["run", "--train-size", "999999"], ["999999"]),
        (["run", "--model", "no.such:factory"], ["no.such"]),
        (["run", "--cost-table", "absent"], ["absent"]),
        (["run", "--method", "stochastic-depth", "--model", "vgg11_bn", "--image-size", "32"], ["residual blocks"]),
        (["run", "--method", "stochastic-depth", "--compile"], ["--compile"]),
        (["run", "--method", "resize", "--compile"], ["--compile"]),
        (
            ["run", "--method", "resize", "--model", "vit_b_16", "--image-size", "32"],
            ["smaller than 32 x 32 pixels", "pools"],
        ),
        (["report", "absent"], ["absent", "cells"]),
        (["report", "absent", "--format", "tex"], ["--format", "tex", "latex"]),
        (["report", "absent", "--format", "csv", "--columns", "tim"], ["--columns", "tim", "time"]),
        (["report", "absent", "--columns", "time"], ["--columns", "--format"]),
        (["report", "absent", "--format", "csv", "--json"], ["--format", "--json"]),
        (["fly"], ["fly"]),
        (["list", "model"], ["model", "models"]),
        (["compare", "absent", "absent"], ["absent", "cells"]),
    ],
)
def test_wrong_input_gets_one_line_exit_code_2_and_leaves_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(capsys, monkeypatch, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_asked_for_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process(capsys, monkeypatch, "run", "--device", "cuda")
    assert code == 2
    assert "--device cpu" in err


def test_an_out_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = in_process(capsys, monkeypatch, "run", "--out", tmp_path / "file" / "x")
    assert code == 2
    assert "--out" in err


def test_debug_shows_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process(capsys, monkeypatch, "--debug", "run", "--model", "resnet81")
    assert code == 2
    assert "Traceback" in err


def test_a_diverged_cell_is_recorded_the_others_go_on_and_the_exit_code_says_so(tmp_path: Path) -> None:
    options = [
        "--method",
        "full",
        "--method",
        "short",
        "--short-budgets",
        "0.5",
        "--lr",
        "1e30",
        "--schedule",
        "constant",
    ]
    done = ldbench("run", *SMALL, *options, "--out", tmp_path / "r", folder=tmp_path)
    assert done.returncode == 1
    records = load(tmp_path / "r")
    assert {record["status"] for record in records.values()} == {"diverged"}
    assert len(records) == 2
    assert "lower --lr" in str(records["full"]["error"])


def test_a_failing_cell_is_recorded_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, torch, torchvision\n"
        "from ldbench.seeds import derive_seed\n"
        "def factory(channels, image_size, classes):\n"
        "    if torch.initial_seed() == derive_seed(3, 'weights') and not pathlib.Path('mended').exists():\n"
        "        raise RuntimeError('no luck')\n"
        "    model = torchvision.models.resnet18(num_classes=classes)\n"
        "    model.conv1 = type(model.conv1)(channels, 64, 3, bias=False)\n"
        "    return model\n"
    )
    size = ["--image-size", "16", "--train-size", "60", "--test-size", "40", "--epochs", "1", "--batch-size", "20"]
    options = ["--model", "mine:factory", "--dataset", "digits", "--method", "full", "--seeds", "3,4", *size]
    done = ldbench("run", *options, "--out", "r", folder=tmp_path)
    records = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("cells/*/result.json")]
    assert {record["seed"]: record["status"] for record in records} == {3: "failed", 4: "finished"}
    assert "no luck" in next(record["error"] for record in records if record["seed"] == 3)
    assert done.returncode == 1
    (tmp_path / "mended").touch()
    again = ldbench("run", *options, "--out", "r", folder=tmp_path)  # the failed cell is tried again
    assert again.returncode == 0, again.stderr


def test_a_dry_run_lists_the_cells_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = in_process(capsys, monkeypatch, "run", *SMALL, "--seeds", "2", "--dry-run")
    assert code == 0
    assert "14 cells" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["--scenario", "scratch"], 2 * 2 * 5 * 11),
        (["--scenario", "fine-tune"], 2 * 2 * 5 * 11),
        (["--scenario", "online"], 2 * 2 * 5 * 16),
    ],
)
def test_a_suite_can_be_narrowed_to_one_of_its_scenarios(
    words: list[str], cells: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, said = in_process(capsys, monkeypatch, "run", "evidence-cpu", *words, "--data-root", ".", "--dry-run")
    assert f"{cells} cells" in out
    assert "not found" in said  # the data; everything else is as it should be
    code, _, said = in_process(
        capsys, monkeypatch, "run", "evidence-cpu", "--scenario", "scratch", "--chunks", "3", "--dry-run"
    )
    assert code == 2
    assert "add --scenario online" in said  # what was asked for on the command line is not left out in silence


def test_a_dry_run_of_a_long_grid_is_told_comparison_by_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, said = in_process(capsys, monkeypatch, "run", "evidence-full", "--data-root", ".", "--dry-run")
    assert code == 2  # no data here
    assert "mnist not found" in said
    assert "8200 cells" in out
    assert sum("resnet152" in line for line in out.splitlines()) == 4 * 4  # data sets x scenarios
    [row] = [line.split() for line in out.splitlines() if line.split()[:3] == ["vgg16_bn", "mnist", "online"]]
    assert row[3:] == ["23", "5", "115", "0"]


def test_help_answers_without_importing_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['ldbench', 'run', '--help']\nfrom ldbench.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--short-budgets" in done.stdout


def test_alone_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for arguments in ([], ["-h"], ["--help"], ["--version"]):
        monkeypatch.setattr(sys, "argv", ["ldbench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]
    assert len(told[0].splitlines()) > 15
    assert told[3] == f"ldbench {__version__}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_named_is_listed_with_a_line_about_each(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_command(kind, as_json=True) == 0
    found = {entry["name"]: entry["about"] for entry in json.loads(capsys.readouterr().out)}
    known = {
        "models": {"resnet152", "vgg19_bn", "vit_b_16"},
        "datasets": {*DATASET_NAMES, *DATASET_FORMS},
        "methods": set(method_names()),
        "suites": set(suite_names()),
    }
    assert known[kind] <= set(found)
    if kind != "models":
        assert all(20 < len(about) < 160 and about.count("(") == about.count(")") for about in found.values()), found
    assert list_command(kind, as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
