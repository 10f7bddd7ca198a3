"""The CKA monitor: its figure against the published formula, its reference, what it costs, and its state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ldbench.dropping.similarity import CkaMonitor, centred_gram


def published(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019, equation 3 for linear kernels, with H written out."""
    b = len(x)
    h = torch.eye(b) - torch.ones(b, b) / b

    def hsic(k: Tensor, m: Tensor) -> float:
        return float(torch.trace(k @ h @ m @ h)) / (b - 1) ** 2

    k, m = x @ x.t(), y @ y.t()
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5


def cka(x: Tensor, y: Tensor) -> float:
    one, two = centred_gram(x), centred_gram(y)
    assert one is not None
    assert two is not None
    return float((one * two).sum())


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_the_figure_is_the_published_one_and_knows_no_scale_shift_or_rotation(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 5, generator=generator), torch.randn(8, 11, generator=generator)
    assert cka(x, y) == pytest.approx(published(x, y), rel=1e-3, abs=1e-5)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    assert cka(x, scale * x @ rotation + 3.0) == pytest.approx(1.0, abs=1e-4)
    assert 0 <= cka(x, y) <= 1


@pytest.mark.parametrize("rows", [torch.ones(4, 3), torch.full((4, 3), torch.nan)])
def test_samples_that_are_all_alike_or_not_finite_have_no_similarity(rows: Tensor) -> None:
    assert centred_gram(rows) is None


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))


def test_the_reference_is_the_network_before_the_first_step_and_every_pass_is_counted() -> None:
    stages, x = network(), torch.randn(6, 5)
    monitor = CkaMonitor(stages, 6, lambda samples, cut: x[:samples], torch.enable_grad)
    monitor.see_gradients(None)
    before = stages[0](x).detach()
    with torch.no_grad():
        stages[0].weight += torch.randn(4, 5)
    monitor.see_gradients(None)  # takes no other
    found = monitor.check(0.5, 1.0)["cka"]
    assert found[0] == pytest.approx(published(before, stages[0](x).detach()), rel=1e-4)
    assert found[1] is not None
    assert 0 < found[1] < 1
    assert monitor.probed == 12  # the reference, and now
    assert monitor.flops == [2 * (2 * 36 * 5) + 2 * 36, 2 * (2 * 36 * 4) + 2 * 36]
    assert stages[1].training
    monitor.check(0.6, 1.0)
    assert monitor.probed == 6
    monitor.drop(1)
    monitor.source = lambda samples, cut: stages[0](x[:samples])
    assert monitor.check(0.7, 1.0)["cka"][0] is None
    assert monitor.flops[0] == 0


def test_a_chunk_is_compared_with_its_own_beginning_and_its_first_check_gives_none() -> None:
    stages, x, y = network(), torch.randn(6, 5), torch.randn(6, 5)
    probe = [x]
    monitor = CkaMonitor(stages, 6, lambda samples, cut: probe[0], torch.enable_grad)
    monitor.see_gradients(None)
    assert monitor.check(0.1, 1.0)["cka"] == [pytest.approx(1.0)] * 2
    with torch.no_grad():
        stages[0].weight += torch.randn(4, 5)
    probe[0] = y
    monitor.begin_chunk()
    monitor.see_gradients(None)
    assert monitor.check(0.2, 1.0)["cka"] == [None, None]
    assert monitor.probed == 6  # the reference alone
    assert monitor.check(0.3, 1.0)["cka"] == [pytest.approx(1.0)] * 2


def test_its_state_goes_on_in_another() -> None:
    stages, x = network(), torch.randn(6, 5)

    def fresh() -> CkaMonitor:
        return CkaMonitor(stages, 6, lambda samples, cut: x, torch.enable_grad)

    whole = fresh()
    whole.see_gradients(None)
    resumed = fresh()
    resumed.load_state_dict(whole.state_dict())
    with torch.no_grad():
        stages[0].weight += 1.0
    resumed.see_gradients(None)
    assert resumed.check(0.1, 1.0) == whole.check(0.1, 1.0)
    assert (resumed.probed, resumed.flops) == (whole.probed, whole.flops)


def test_without_a_step_heard_of_the_first_check_takes_the_reference() -> None:
    stages, x = network(), torch.randn(6, 5)
    monitor = CkaMonitor(stages, 6, lambda samples, cut: x, torch.enable_grad)
    assert monitor.check(0.1, 1.0)["cka"] == [None, None]
    assert monitor.check(0.2, 1.0)["cka"] == [pytest.approx(1.0)] * 2
