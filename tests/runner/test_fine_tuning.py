"""Fine-tuning end to end: what is begun with, that all methods begin with the same, and that interruptions change
nothing.
"""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import load_file, save_file
from support.hostile import ldbench, refused
from support.interruptions import StopAfter
from support.report_records import make_record, write_cell
from torch import nn

from ldbench.cli.progress import ConsoleProgress
from ldbench.errors import UserError
from ldbench.experiment.validation import experiment_from_dict
from ldbench.io.checksums import read_sealed, write_sealed
from ldbench.models.fit import ModelSpec
from ldbench.models.initial_weights import InitialWeights, digest, head_names, torchvision_weights, weights_from_file
from ldbench.models.zoo import build_model
from ldbench.records.cell_files import VOLATILE_FIELDS
from ldbench.records.integrity import verify
from ldbench.records.plan_file import all_finished
from ldbench.records.results import load_results
from ldbench.reporting.summary import summarize
from ldbench.runner.plan import plan
from ldbench.runner.preparation import Preparation
from ldbench.runner.run_grid import run_experiment
from ldbench.seeds import derive_seed
from ldbench.training.checkpointing import CHECKPOINT, Checkpointer
from ldbench.training.interrupts import Interrupted

TABLE: dict[str, Any] = {
    "model": "support.tiny_nets:net", "dataset": "digits[5-9]", "image_size": 8, "train_size": 80, "test_size": 50,
    "epochs": 3,
    "batch_size": 20, "check_every": 2, "scenario": "fine-tune", "pretrain_dataset": "digits[0-3]",
    "pretrain_size": 512,
    "pretrain_epochs": 2, "method": ["full", "short", "learn-and-drop", "freeze", "schedule"], "short_budgets": [0.5],
    "policy": {"schedule": {"drops": [[0.25, 0.3], [0.6, 0.6]]}, "learn-and-drop": {"remaining": 0.9, "patience": 1}},
    "seeds": 2, "threads": torch.get_num_threads(),
}  # fmt: skip
SPEC = ModelSpec("support.tiny_nets:net", 1, 8, 5)
QUIET = ConsoleProgress(Console(), quiet=True)


def run(out: Path, **changes: Any) -> dict[tuple[str, int], dict[str, Any]]:
    """Run the grid; its records by method and seed."""
    table = {key: value for key, value in (TABLE | changes).items() if value is not None}
    outcome = run_experiment(experiment_from_dict(table), out, QUIET)
    records = [read_sealed(path) for path in out.glob("cells/*/result.json")]
    assert not outcome.failed, [record["error"] for record in records]
    return {(record["method"], record["seed"]): record for record in records}


@pytest.fixture(scope="module")
def paying(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cost table by which every drop pays; the real one of so small a network seldom says so."""
    out = tmp_path_factory.mktemp("measured")
    run(out, method="full", seeds=1, epochs=1, pretrain_epochs=1)
    [path] = out.glob("costs/*.json")
    told = read_sealed(path)
    table = told["table"]
    count = len(table["stages"])
    free = dict.fromkeys(("read_overhead", "read_per_byte", "write_per_byte"), 0.0)
    table |= {"steps": [float(count - cut) for cut in range(count)], "tiers": dict.fromkeys(table["tiers"], free)}
    table |= {"inference": [0.0] * count, "forward": [0.0] * count}
    write_sealed(path, told)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, paying: str) -> Path:
    out = tmp_path_factory.mktemp("finished")
    run(out, cost_table=paying)
    return out


def records(out: Path) -> list[dict[str, Any]]:
    return [read_sealed(path) for path in sorted(out.glob("cells/*/result.json"))]


def test_every_method_of_a_seed_begins_with_the_same_weights_which_are_those_of_the_source_run(finished: Path) -> None:
    made = {read_sealed(path)["seed"]: path.parent for path in finished.glob("pretrained/*/result.json")}
    assert made.keys() == {0, 1}
    for seed, folder in made.items():
        torch.manual_seed(derive_seed(seed, "weights"))
        model = build_model(SPEC)
        source = load_file(folder / "model.safetensors")
        assert source["15.weight"].shape == (4, 16)  # the head of four classes
        del source["15.weight"], source["15.bias"]
        assert not model.load_state_dict(source, strict=False).unexpected_keys
        mine = [record for record in records(finished) if record["seed"] == seed]
        assert len(mine) == 5
        assert {record["init_sha256"] for record in mine} == {digest(model)}
        told = read_sealed(folder / "result.json")
        for record in mine:
            assert record["scenario"] == "fine-tune"
            assert record["init_tensors_drawn"] == ["15.weight", "15.bias"]
            assert record["init_tensors_taken"] == len(source)
            assert (record["pretrain_dataset"], record["pretrain_epochs"], record["pretrain_images"]) == (
                "digits[0-3]",
                2,
                512,
            )
            assert record["pretrain_seconds"] == told["train_seconds"]
            assert record["pretrain_accuracy"] == told["test_accuracy"]
            assert record["train_seconds"] < 60
    assert list(verify(finished)) == []


def test_what_was_dropped_and_stored_is_charged_and_what_was_made_before_is_not(finished: Path) -> None:
    by_method = {record["method"]: record for record in records(finished) if record["seed"] == 0}
    assert by_method["schedule"]["drops"]
    built = by_method["schedule"]["cache_build_flops"]
    assert 0 < by_method["schedule"]["forward_flops"] - built < by_method["full"]["forward_flops"]
    assert by_method["full"]["forward_flops"] == by_method["full"]["forward_flops_full"]
    assert [d["cut"] for d in by_method["freeze"]["drops"]] == [d["cut"] for d in by_method["learn-and-drop"]["drops"]]


def test_a_resolved_experiment_is_fed_back_and_finds_everything_finished(finished: Path) -> None:
    told = read_sealed(finished / "experiment.json")
    again = experiment_from_dict({key: told[key] for key in told if key not in ("schema_version", "sha256")})
    assert all_finished(finished, again) == 10
    assert run_experiment(again, finished, QUIET).skipped == 10


def test_the_report_keeps_scenarios_apart_and_names_them(finished: Path, tmp_path: Path) -> None:
    summary = summarize(load_results(finished))
    assert set(summary["scenario"]) == {"fine-tune"}
    assert len(summary) == 5
    for scenario, seconds in (("scratch", 100.0), (None, 101.0), ("fine-tune", 50.0)):
        record = make_record("full", int(scenario is None), train_seconds=seconds, scenario=scenario)
        if scenario is None:  # written before there were scenarios
            del record["scenario"]
        write_cell(tmp_path, record, **({} if scenario is None else {"scenario": scenario}))
    rows = summarize(load_results(tmp_path))
    assert sorted(zip(rows["scenario"], rows["runs"], strict=True)) == [("fine-tune", 1), ("scratch", 2)]


def test_runs_that_began_with_different_weights_are_warned_about(tmp_path: Path) -> None:
    for method, weights in (("full", "a"), ("freeze", "b")):
        write_cell(tmp_path, make_record(method, 0, scenario="fine-tune", init_sha256=weights), scenario="fine-tune")
    assert "began with different weights" in summarize(load_results(tmp_path))["warnings"][0]


# --- interruptions ---------------------------------------------------------------------------------------------------


def lasting(out: Path) -> dict[str, Any]:
    """Every record without what may differ, and the weights that were made."""
    told: dict[str, Any] = {}
    for path in sorted(out.glob("*/*/result.json")):
        told[path.parent.name] = {
            k: v for k, v in read_sealed(path).items() if k not in (*VOLATILE_FIELDS, "drops", "declined")
        }
        for file in path.parent.glob("*.safetensors"):
            told[f"{path.parent.name}/{file.name}"] = {k: v.numpy().tobytes() for k, v in load_file(file).items()}
    return told


def interrupted(out: Path, after: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bool:
    """Run the grid with a signal after so many steps or minibatches of a store; whether it came before the end."""
    with monkeypatch.context() as patch:
        patch.setattr("ldbench.runner.run_grid.StopRequest", lambda: StopAfter(after))
        try:
            run(out, **changes)
        except Interrupted:
            return True
    return False


def test_interrupted_while_the_weights_are_made_and_while_they_are_tuned_the_bits_are_the_same(
    tmp_path: Path, paying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method": ["full", "schedule"], "seeds": 1, "save_model": "final", "cost_table": paying}
    assert run(tmp_path / "whole", **changes)["schedule", 0]["drops"]
    out, stopped = tmp_path / "hit", 0
    while interrupted(out, 6 + stopped, monkeypatch, **changes):
        stopped += 1
    assert stopped >= 4
    assert lasting(out) == lasting(tmp_path / "whole")
    assert read_sealed(next(out.glob("pretrained/*/result.json")))["resumes"] >= 1
    assert not list(out.glob("*/*/checkpoint*"))


def test_weights_that_were_damaged_are_made_again_and_the_bits_are_the_same(
    tmp_path: Path, paying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"method": "full", "seeds": 1, "cost_table": paying}
    run(tmp_path / "whole", **changes)
    assert interrupted(tmp_path / "hit", 20, monkeypatch, **changes)
    [weights] = tmp_path.glob("hit/pretrained/*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert run(tmp_path / "hit", **changes)["full", 0]["resumes"] == 1
    assert weights.with_name("model.safetensors.damaged-1").exists()
    assert lasting(tmp_path / "hit") == lasting(tmp_path / "whole")


def test_a_checkpoint_that_began_with_other_weights_is_not_gone_on_with(
    tmp_path: Path, paying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"method": "full", "seeds": 1, "cost_table": paying}
    assert interrupted(tmp_path, 20, monkeypatch, **changes)
    [weights] = tmp_path.glob("pretrained/*/model.safetensors")
    tensors = load_file(weights)
    tensors["0.weight"] += 1
    save_file(tensors, weights)
    record = run(tmp_path, **changes)["full", 0]
    assert any("another configuration" in entry["what"] for entry in record["incidents"])
    assert list(tmp_path.glob(f"cells/*/{CHECKPOINT}.damaged-1"))


def test_who_comes_second_waits_and_begins_with_the_weights_of_the_first(tmp_path: Path) -> None:
    cell = plan(experiment_from_dict(TABLE))[0]
    preparation = Preparation(experiment_from_dict(TABLE), tmp_path, torch.device("cpu"))
    preparation.data(cell)
    said: list[list[str]] = [[], []]

    def weights(number: int) -> InitialWeights:
        mine = copy.copy(preparation)
        mine.note, mine._pretrained = said[number].append, {}
        found = mine.initial(cell, lambda folder: Checkpointer(folder))
        assert found is not None
        return found

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(weights, range(2))
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    lines = said[0] + said[1]
    assert sum("accuracy on digits[0-3]" in line for line in lines) == 1
    assert sum("is at it, waiting" in line for line in lines) == 1


# --- weights from a file ---------------------------------------------------------------------------------------------


def test_a_saved_model_is_begun_with_wherever_it_lies(tmp_path: Path, paying: str) -> None:
    source = {
        "cost_table": paying,
        "scenario": None,
        "pretrain_dataset": None,
        "pretrain_size": None,
        "pretrain_epochs": None,
        "seeds": 1,
    }
    run(tmp_path / "a", **source, method="full", save_model="final")
    [saved] = tmp_path.glob("a/cells/*/model.safetensors")
    tuned = source | {"scenario": "fine-tune", "init": str(saved), "method": ["full", "schedule"]}
    same = run(tmp_path / "b", **tuned)["full", 0]
    assert same["init_tensors_drawn"] == []
    model = build_model(SPEC)
    model.load_state_dict(load_file(saved))
    assert same["init_sha256"] == digest(model)
    assert same["init_origin"] == "model.safetensors"
    fewer = run(tmp_path / "c", **tuned | {"dataset": "digits[0-1]", "cost_table": None, "method": "full"})["full", 0]
    assert fewer["init_tensors_drawn"] == ["15.weight", "15.bias"]

    moved = tmp_path / "elsewhere.safetensors"  # the content counts, not the place
    saved.rename(moved)
    experiment = experiment_from_dict(
        {k: v for k, v in (TABLE | tuned | {"init": str(moved)}).items() if v is not None}
    )
    assert run_experiment(experiment, tmp_path / "b", QUIET).skipped == 2
    tensors = load_file(moved)
    tensors["0.weight"] = tensors["0.weight"] + 1
    save_file(tensors, moved)  # other weights under the same name are other cells
    assert run_experiment(experiment, tmp_path / "b", QUIET).finished == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({"0.weight": torch.zeros(7, 1, 3, 3)}),
            "0.weight is [7, 1, 3, 3] where the network has [6, 1, 3, 3]",
        ),
        (lambda t: t.pop("1.running_mean"), "1.running_mean is missing"),
        (lambda t: t.update({"99.bias": torch.zeros(2)}), "99.bias is unknown to the network"),
        (
            lambda t: [t.pop(name) for name in list(t)],
            "0.weight is missing; 0.bias is missing; 1.weight is missing and",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: Any, said: str) -> None:
    tensors = dict(build_model(SPEC).state_dict())
    change(tensors)
    with pytest.raises(UserError) as caught:
        InitialWeights("x", tensors).put_into(build_model(SPEC), SPEC)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_saved_once_under_one_of_its_two_names_fills_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Linear(4, 4)
            self.a = self.b
            self.head = nn.Linear(4, 2)

    model = Tied()
    tensors = {f"a.{key}": torch.full_like(value, 3.0) for key, value in model.a.state_dict().items()}
    tensors |= {f"head.{key}": value for key, value in model.head.state_dict().items()}
    spec = ModelSpec("resnet18", 3, 32, 10)  # asked for the names of a head alone, and these are other names
    told = InitialWeights("x", tensors).put_into(model, spec)
    assert float(model.b.weight.detach().min()) == 3.0
    assert (told["init_tensors_taken"], told["init_tensors_drawn"]) == (4, [])


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vgg11_bn", {"classifier.6.weight", "classifier.6.bias"}),
        ("resnet18", {"fc.weight", "fc.bias"}),
        ("squeezenet1_1", {"classifier.1.weight", "classifier.1.bias"}),
        ("densenet121", {"classifier.weight", "classifier.bias"}),
    ],
)
def test_the_head_is_what_follows_the_number_of_classes(name: str, head: set[str]) -> None:
    before = torch.get_rng_state()
    assert head_names(ModelSpec(name, 3, 32, 10)) == head
    assert torch.equal(torch.get_rng_state(), before)


def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    text, link, sealed = tmp_path / "a.safetensors", tmp_path / "b", tmp_path / "c.safetensors"
    text.write_text("not at all")
    link.symlink_to(tmp_path / "nowhere")
    from ldbench.io.tensors import save_model

    save_model(build_model(SPEC), sealed)
    assert weights_from_file(sealed, "").tensors.keys() == build_model(SPEC).state_dict().keys()
    data = sealed.read_bytes()
    sealed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for path, said in ((text, "header"), (link, "No such file"), (tmp_path, "is no file"), (sealed, "checksum")):
        with pytest.raises(UserError) as caught:
            weights_from_file(path, "")
        assert said.lower() in str(caught.value).lower()
        assert str(path)[:40] in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scenario", "fine-tune"], "needs weights to begin with: give either --init"),
        (["--scenario", "finetune"], "did you mean fine-tune"),
        (["--init", "torchvision"], "add --scenario fine-tune"),
        (["--scenario", "fine-tune", "--init", "torchvision", "--pretrain-dataset", "mnist"], "one kind of weights"),
        (["--scenario", "fine-tune", "--init", "absent.safetensors"], "No such file"),
        (["--scenario", "fine-tune", "--pretrain-dataset", "mnits"], "did you mean mnist"),
        (["--scenario", "fine-tune", "--pretrain-dataset", "digits", "--pretrain-epochs", "0"], "above 0"),
        (["--pretrain-epochs", "2"], "goes with --pretrain-dataset"),
        (["--scenario", "fine-tune", "--pretrain-dataset", "synthetic:3x16x16:4:40"], "conv1.weight is"),
        (
            ["--scenario", "fine-tune", "--pretrain-dataset", "digits", "--pretrain-size", "3"],
            "train size 3 cannot be had",
        ),
    ],
)
def test_what_cannot_be_fine_tuned_ends_with_exit_code_2_and_one_line(
    words: list[str], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["run", "--dataset", "digits", "--model", "resnet18", "--width", "0.1", "--image-size", "16"]
    ended = ldbench(*command, *words, "--out", out)
    assert refused(ended)
    assert said in ended.err
    assert not out.exists()


# --- published weights -----------------------------------------------------------------------------------------------


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> str:
    """Put ``content`` where torch's hub keeps the published weights of an architecture; returns its name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    name = "shufflenet_v2_x0_5"
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(content, folder / "checkpoints" / Path(url).name)
    return name


def test_of_published_weights_what_fits_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.shufflenet_v2_x0_5(weights=None)
    name = cached(tmp_path, monkeypatch, published.state_dict())
    weights = torchvision_weights(name, download=False)
    assert weights.origin == "torchvision IMAGENET1K_V1"
    spec = ModelSpec(name, 1, 32, 10)
    model = build_model(spec)
    told = weights.put_into(model, spec)
    assert told["init_tensors_drawn"] == ["conv1.0.weight", "fc.weight", "fc.bias"]
    assert torch.equal(model.state_dict()["conv5.0.weight"], published.state_dict()["conv5.0.weight"])


def test_published_weights_are_fetched_only_when_asked_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "empty"))
    with pytest.raises(UserError, match="add --download to fetch https"):
        torchvision_weights("resnet18", download=False)
    with pytest.raises(UserError, match="no architecture of torchvision"):
        torchvision_weights("support.tiny_nets:net", download=True)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    name = cached(tmp_path, monkeypatch, {"conv1.0.weight": torch.zeros(1), "x": Payload()})
    with pytest.raises(UserError, match="torchvision"):
        torchvision_weights(name, download=False)
    assert not (tmp_path / "ran").exists()
    assert pickle.dumps(Payload())  # it would have run
    pickle.loads(pickle.dumps(Payload()))  # it would have run
    assert (tmp_path / "ran").exists()
