"""InfoBatch in an engine: who sits out, what the others weigh, where the run stands, and a user's own loop."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.loops import BATCH, SAMPLES, Net, cheap_store, data, state
from torch import Tensor, nn

from ldbench import FixedSchedule, InfoBatch, LayerDropper
from ldbench.data.stream import Stream
from ldbench.dropping.pruned_schedule import PrunedSchedule
from ldbench.dropping.pruning import Pruning
from ldbench.errors import UserError
from ldbench.policies.base import NeverDrop

CPU = torch.device("cpu")


def made(samples: int, rule: InfoBatch | None = None, *, seed: int = 0, total: int = 1000) -> Pruning:
    rule = rule or InfoBatch()
    schedule = PrunedSchedule(total, 5, in_steps=True, checks_in_steps=True, thin=[(0.0, rule.until)], rate=0.75)
    return Pruning(rule, schedule, samples, seed, CPU)


# --- who sits out ----------------------------------------------------------------------------------------------------


def test_half_of_those_below_the_mean_sit_out_and_the_others_of_them_count_twice() -> None:
    pruning, order = made(12), torch.tensor([7, 0, 3, 9, 1, 11, 5, 2, 10, 8, 4, 6])
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 30.0])
    pruning.saw(torch.arange(8), losses)  # mean 6.375: the first seven but for the last lie below; 8 to 11 are unseen
    pruning.saw(torch.tensor([6]), torch.tensor([40.0]))  # the last loss counts: mean 10.625, 0 to 5 lie below
    kept = pruning.select(order, 0, 0, 1)
    assert set(range(6, 12)) <= set(kept.tolist())
    assert len(kept) == 6 + 3
    assert kept.tolist() == [index for index in order.tolist() if index in set(kept.tolist())]
    assert pruning.weights(kept).tolist() == [2.0 if index < 6 else 1.0 for index in kept.tolist()]


def test_no_sample_sits_out_before_losses_were_seen_and_in_the_last_eighth() -> None:
    pruning, order = made(40), torch.arange(40)
    assert torch.equal(pruning.select(order, 0, 0, 4), order)
    pruning.saw(order, order.float())
    assert len(pruning.select(order, 1, 0, 4)) == 30
    pruning.schedule.step = pruning.schedule.consumed = 874
    pruning.schedule._span = None
    assert len(pruning.select(order, 2, 0, 4)) == 30
    pruning.schedule.step = pruning.schedule.consumed = 875
    pruning.schedule._span = None
    whole = pruning.select(order, 3, 0, 4)
    assert torch.equal(whole, order)
    assert pruning.weights(whole).tolist() == [1.0] * 40


def test_those_that_sit_out_keep_their_score_and_other_epochs_and_seeds_choose_others() -> None:
    drawn = []
    for seed in (0, 0, 1):
        pruning, order = made(64, seed=seed), torch.arange(64)
        pruning.saw(order, (order >= 32).float())
        before = pruning.scores.clone()
        epochs = [pruning.select(order, epoch, 0, 4).tolist() for epoch in range(3)]
        assert torch.equal(pruning.scores, before)
        drawn.append(epochs)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({tuple(kept) for kept in drawn[0]}) == 3


def test_an_epoch_asked_for_again_is_the_same_whatever_was_seen_meanwhile() -> None:
    pruning, order = made(32), torch.arange(32)
    pruning.saw(order, order.float())
    pruning.select(order, 0, 0, 4)
    kept, weights = pruning.select(order, 1, 0, 4), pruning.weights(order)
    pruning.saw(order, -order.float())
    saved = pruning.state_dict()
    for again in (pruning, made(32)):
        again.load_state_dict(saved)
        assert torch.equal(again.select(order, 1, 0, 4), kept)
        assert torch.equal(again.weights(order), weights)
        assert torch.equal(again.select(order, 0, 0, 4), order)  # over: it comes whole, and changes nothing
        assert torch.equal(again.weights(order), weights)
    assert not torch.equal(pruning.select(order, 2, 0, 4), kept)


def test_a_minibatch_is_always_left() -> None:
    pruning, order = made(10, InfoBatch(0.99)), torch.arange(10)
    pruning.saw(order, torch.tensor([0.0] * 9 + [1.0]))
    kept = pruning.select(order, 0, 0, 8)
    assert len(kept) == 8
    assert float(pruning.weights(kept).sum()) == pytest.approx(10)


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 5, width=32)), min_size=8, max_size=40),
    st.floats(0, 0.9),
    st.integers(0, 2**31),
)
def test_the_weights_of_an_epoch_sum_to_the_samples_and_each_is_one_in_expectation(
    scores: list[float | None], ratio: float, seed: int
) -> None:
    """Each sample's weight, 0 where it sits out, is 1 in the mean over draws: the expected gradient is the whole one."""
    samples, order = len(scores), torch.arange(len(scores))
    seen = torch.tensor([index for index, score in enumerate(scores) if score is not None], dtype=torch.int64)
    known = torch.tensor([score for score in scores if score is not None])
    pruning, draws = made(samples, InfoBatch(ratio), seed=seed), 400
    pruning.saw(seen, known)
    drawn = torch.zeros(draws, samples, dtype=torch.float64)
    for draw in range(draws):
        kept = pruning.select(order, draw, 0, 1)
        drawn[draw, kept] = pruning.weights(kept).double()
        assert float(drawn[draw].sum()) == pytest.approx(samples, rel=1e-6)
    weight = float(drawn.max())
    spread = ((weight - 1) / draws) ** 0.5  # of a mean of draws that are `weight` with probability 1 / weight, else 0
    assert (drawn.mean(0) - 1).abs().max() <= 6 * spread + 1e-6


# --- where the run stands --------------------------------------------------------------------------------------------


def walked(schedule: PrunedSchedule, lengths: list[tuple[int, int]]) -> list[tuple[float, bool, int]]:
    told = []
    for planned, kept in lengths:
        schedule.begin(planned, kept)
        for _ in range(kept):
            schedule.advance(1)
            told.append((schedule.steps_of_plan, schedule.check_due, schedule.remaining))
    return told


def test_fewer_steps_go_through_the_whole_plan_with_all_its_checks() -> None:
    schedule = PrunedSchedule(40, 5, in_steps=True, checks_in_steps=True, thin=[(0.0, 0.75)], rate=0.75)
    told = walked(schedule, [(10, 10), (10, 6), (10, 7), (10, 10)])
    assert [place for place, *_ in told[9:17]] == pytest.approx(
        [10, *(10 + 10 * n / 6 for n in range(1, 7)), 20 + 10 / 7]
    )
    assert (told[15][0], told[22][0], told[-1][0]) == (20, 30, 40)  # exactly
    assert [number for number, (_, due, _) in enumerate(told, 1) if due] == [5, 10, 13, 16, 20, 23, 28]
    assert (schedule.step, schedule.progress, schedule.over, schedule.remaining) == (33, 1.0, True, 0)


def test_the_steps_that_remain_are_estimated_by_the_last_thin_epoch_and_known_in_the_last_ones() -> None:
    schedule = PrunedSchedule(40, 5, in_steps=True, checks_in_steps=True, thin=[(0.0, 0.75)], rate=0.75)
    assert schedule.remaining == round(30 * 0.75 + 10)
    remaining = [left for *_, left in walked(schedule, [(10, 10), (10, 6), (10, 7), (10, 10)])]
    assert remaining[0] == round(9 + 20 * 0.75 + 10)
    assert remaining[10] == 5 + 6 + 10  # the third epoch as the second
    assert remaining[16:] == list(range(16, -1, -1))


def test_a_plan_in_minibatches_is_passed_by_steps_that_take_several() -> None:
    schedule = PrunedSchedule(40, 5, in_steps=False, checks_in_steps=False, thin=[(0.0, 0.75)], rate=0.75)
    checks = 0
    for kept in (10, 6, 8, 10):
        schedule.begin(10, kept)
        for _ in range(kept // 2):
            schedule.advance(2)
            checks += schedule.check_due
    assert (schedule.step, schedule.consumed, schedule.minibatches_of_plan, schedule.over) == (17, 34, 40, True)
    assert checks == 7


def test_a_schedule_goes_on_where_it_was_saved() -> None:
    first = PrunedSchedule(40, 5, in_steps=True, checks_in_steps=True, thin=[(0.0, 0.75)], rate=0.75)
    second = PrunedSchedule(40, 5, in_steps=True, checks_in_steps=True, thin=[(0.0, 0.75)], rate=0.75)
    walked(first, [(10, 10)])
    first.begin(10, 6)
    first.advance(1)
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert (second.progress, second.remaining) == (first.progress, first.remaining)
        first.advance(1)
        second.advance(1)
        assert second.check_due == first.check_due


# --- a loop of one's own ---------------------------------------------------------------------------------------------


class Loop:
    """A user's loop that tells its losses and weighs them."""

    def __init__(self, pruning: InfoBatch | None, *, epochs: int = 8, **options: Any) -> None:
        torch.manual_seed(3)
        self.model, self.handed = Net(0.2), list[list[int]]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.02, momentum=0.9)
        self.epochs = epochs
        options = {"policy": FixedSchedule([(0.3, 1), (0.6, 2)]), "costs": cheap_store(self.model)} | options
        self.dropper = LayerDropper(
            self.model, self.optimizer, data(), batch_size=BATCH, epochs=epochs, pruning=pruning, **options
        )

    def epoch(self, steps: int | None = None) -> Any:
        """An epoch; or so many steps of it and a file that it was saved in then."""
        self.handed.append([])
        for number, (x, y, index) in enumerate(self.dropper, 1):
            self.optimizer.zero_grad()
            losses: Tensor = nn.functional.cross_entropy(self.dropper(x), y, reduction="none")
            self.dropper.saw(index, losses)
            (self.dropper.weights(index) * losses).mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.dropper.step()
            self.handed[-1].append(len(index))
            if number == steps:
                memory = io.BytesIO()
                torch.save([part.state_dict() for part in (self.model, self.dropper, self.optimizer)], memory)
                memory.seek(0)
                return memory
        return None

    def run(self) -> Loop:
        while self.dropper.schedule.epoch < self.epochs or self.dropper.minibatches._resume_at is not None:
            self.epoch()
        return self


def test_a_users_loop_trains_on_fewer_samples_and_ends_its_plan_dropping_on_the_way() -> None:
    loop = Loop(InfoBatch()).run()
    dropper, whole = loop.dropper, SAMPLES // BATCH
    lengths = [len(epoch) for epoch in loop.handed]
    assert lengths[0] == lengths[-1] == whole
    assert all(whole // 2 <= length < whole for length in lengths[1:-1])
    assert dropper.step_count == sum(lengths) < dropper.total_steps == 8 * whole
    assert dropper.progress == 1.0
    assert [drop.cut for drop in dropper.drops] == [1, 2]
    store = dropper.store
    assert store is not None
    assert store.samples == SAMPLES  # any of them may come back
    assert not dropper.account.incidents


def test_a_users_loop_is_saved_and_gone_on_with_in_the_middle_of_an_epoch_with_the_same_bits() -> None:
    plain = Loop(InfoBatch()).run()
    for epochs, steps in ((1, 2), (4, 1), (5, 3)):
        first = Loop(InfoBatch())
        for _ in range(epochs):
            first.epoch()
        states = torch.load(first.epoch(steps), weights_only=False)
        second = Loop(InfoBatch())
        for part, saved in zip((second.model, second.dropper, second.optimizer), states, strict=True):
            part.load_state_dict(saved)
        second.run()
        assert second.dropper.step_count == plain.dropper.step_count
        for name, value in state(plain.model).items():
            assert torch.equal(value, state(second.model)[name]), (epochs, steps, name)


def test_without_pruning_all_weigh_one_and_a_state_of_the_other_kind_is_refused() -> None:
    loop, other = Loop(None, policy=NeverDrop()), Loop(InfoBatch(0.25), policy=NeverDrop())
    assert loop.dropper.weights(torch.arange(3)).tolist() == [1.0] * 3
    loop.epoch()
    with pytest.raises(ValueError, match="the saved state has pruning None"):
        other.dropper.load_state_dict(loop.dropper.state_dict())
    with pytest.raises(UserError, match="one loss per sample is wanted"):
        other.dropper.saw(torch.arange(3), torch.zeros(3, 8, 8))


def test_in_a_stream_scores_of_what_is_remembered_stay_and_each_chunk_ends_with_whole_epochs() -> None:
    sets = [torch.arange(0, 48), torch.arange(32, 96)]
    loop = Loop(InfoBatch(), stream=Stream(sets), policy=NeverDrop())
    for _ in range(8):
        loop.epoch()
    pruning = loop.dropper.pruning
    assert pruning is not None
    remembered = pruning.scores[32:48].clone()
    loop.dropper.begin_chunk(1)
    assert torch.equal(pruning.scores[32:48], remembered)
    assert pruning.scores[48:].isnan().all()
    for _ in range(8):
        loop.epoch()
    lengths = [len(epoch) for epoch in loop.handed]
    assert lengths[0] == lengths[7] == 3
    assert lengths[15] == 4
    assert max(*lengths[2:7], *lengths[10:15]) < 4
    assert lengths[8] <= 4  # some of the remembered sit out at once, none of the new
    assert loop.dropper.progress == 1.0
