"""What the loops of libraries cannot follow is refused by one check that all adapters make."""

from __future__ import annotations

import pytest

from ldbench.adapters.detour import check_options
from ldbench.errors import UserError
from ldbench.policies.baselines import FreezeOut
from ldbench.policies.infobatch import InfoBatch
from ldbench.policies.rules import LearnAndDrop


def test_pruning_and_rates_of_a_rule_are_for_loops_of_ones_own() -> None:
    check_options({})
    check_options({"policy": LearnAndDrop(), "pruning": None, "seed": 3})
    with pytest.raises(UserError, match="pruning= wants the loss of every sample"):
        check_options({"pruning": InfoBatch()})
    with pytest.raises(UserError, match="FreezeOut sets a learning rate for every stage"):
        check_options({"policy": FreezeOut()})
