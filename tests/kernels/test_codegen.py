"""What the compiler makes of the kernels for sm_80 and sm_90, seen without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    not (3, 6) <= VERSION <= (3, 9), reason=f"written for the compiler interface of triton 3.6 to 3.9, not {VERSION}"
)
CAPABILITIES = [80, 90]
DELTAS = [f"delta {dtype}" for dtype in ("fp32", "fp16", "bf16", "fp64")]
ALIGNED = [
    "gather i8 bf16 nchw", "gather i8 fp16 nchw", "gather i8 fp32 nchw", "gather i8 bf16 odd", "gather i8 bf16 last",
    "gather i8 fp32 last", "gather fp16 fp32 flat", "gather bf16 fp32 flat",
]  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    cache = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1] / "support/compile_kernels.py"
    answer = subprocess.run(
        [sys.executable, script],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, dict[str, int]] = json.loads(answer.stdout)
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", DELTAS)
def test_delta_norms_move_full_chunks_by_16_bytes(
    compiled: dict[str, dict[str, int]], name: str, capability: int
) -> None:
    from ldbench.kernels.tables import BLOCK

    itemsize = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8}[name.split()[1]]
    each = BLOCK * itemsize // 16 // (8 * 32)  # loads of 16 bytes per thread and tensor
    with_update, without = compiled[f"{name} update {capability}"], compiled[f"{name} read {capability}"]
    assert with_update["wide_loads"] >= 2 * each
    assert with_update["wide_stores"] >= each
    assert without["wide_loads"] >= 2 * each
    assert without["wide_stores"] == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ALIGNED)
def test_gather_of_padded_rows_loads_and_stores_16_bytes(
    compiled: dict[str, dict[str, int]], name: str, capability: int
) -> None:
    found = compiled[f"{name} {capability}"]
    _, stored, wanted, _ = name.split()
    width = {"i8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
    assert found["wide_loads"] >= 4096 * width[stored] // 16 // 256
    assert found["wide_stores"] >= 4096 * width[wanted] // 16 // 256
    assert found["byte_loads"] == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["gather i8 bf16 padded", "gather fp16 fp32 padded"])
def test_padding_alone_makes_loads_wide(compiled: dict[str, dict[str, int]], name: str, capability: int) -> None:
    """Where 16 divides the stride of the store and not the row; the minibatch has no padding, so stores stay narrow."""
    found = compiled[f"{name} {capability}"]
    assert found["wide_loads"] >= 4096 * (1 if " i8 " in name else 2) // 16 // 256
    assert found["byte_loads"] == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_rows_without_padding_fall_back_to_byte_loads(compiled: dict[str, dict[str, int]], capability: int) -> None:
    """Shows that the tests above can fail."""
    found = compiled[f"gather i8 bf16 bare {capability}"]
    assert found["byte_loads"] >= 16


def test_nothing_spills_and_everything_was_built_for_both_targets(compiled: dict[str, dict[str, int]]) -> None:
    assert {name.rsplit(" ", 1)[1] for name in compiled} == {"80", "90"}
    for name, found in compiled.items():
        assert (found["local"], found["LOCAL"], found["STACK"]) == (0, 0, 0), name


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_two_programs_fit_a_multiprocessor(compiled: dict[str, dict[str, int]], capability: int) -> None:
    """65,536 registers and programs of 256 threads: at most 128 registers each, else loads wait for arithmetic."""
    for name, found in compiled.items():
        if name.startswith(("delta", "gather")) and name.endswith(str(capability)):
            assert found["REG"] <= 128, name


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_row_offsets_are_64_bit_products(compiled: dict[str, dict[str, int]], capability: int) -> None:
    for name in ALIGNED:
        found = compiled[f"{name} {capability}"]
        assert found["multiplications_64"] >= 2, name  # the row in the store, the sample in the result
        assert found["products_64"] >= 1, name
