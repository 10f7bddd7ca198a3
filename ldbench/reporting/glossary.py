"""The columns of the report: for each its title, how a summary row fills it, and what it means, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ldbench.errors import clean
from ldbench.reporting.formatting import (
    Row,
    accuracy,
    end_and_average,
    energy,
    planned_seeds,
    plus_minus,
    reached,
    runs,
    seconds,
    several,
    spanned,
    speed_up,
    standing,
    time_ratio,
    to_target,
)


class Column(NamedTuple):
    """``title`` heads the column, ``show`` gives a row's text, ``meaning`` is the glossary entry."""

    title: str
    show: Callable[[Row], str]
    meaning: str


METHOD = Column(
    "method", lambda row: clean(row["label"]), "What decided when to drop. full and short are the controls."
)
ENERGY = Column(
    "energy J", energy, "Joules of training with the bound of the meter. Unavailable is never 0, and never a guess."
)
ACCURACY_COLUMNS = (
    METHOD,
    Column(
        "times cheaper at equal accuracy, FLOPs",
        lambda row: speed_up(row, "flops"),
        "What shortened training costs to end at the method's accuracy, over what the method costs: 1.4x means that "
        "training less would take 1.4 times as many FLOPs. With the 95 % interval over seeds of the test that decides "
        "the points beside it, so it lies above 1 just where they lie above 0. Where the method ends above all that "
        "the control reaches, or below its cheapest budget, it is a bound and printed as one. Of streams the accuracy "
        "is the mean over the chunks.",
    ),
    Column("times cheaper, time", lambda row: speed_up(row, "time"), "The same by training time."),
    Column(
        "n",
        runs,
        "Finished runs, one per seed. One run is an anecdote; diverged and failed runs have no accuracy "
        "and are counted here, so that a mean over survivors is seen for what it is.",
    ),
    Column(
        "accuracy %",
        accuracy,
        "Test accuracy: mean over seeds ± half the 95 % interval (Student's t). Where data arrive in chunks, the one "
        "at the end and the mean of those after every chunk.",
    ),
    Column(
        "points vs full",
        lambda row: end_and_average(row, "difference_to_full_points"),
        "Accuracy minus that of full training with the same seed, in percentage points: mean [95 % interval]. The "
        "interval 'with images' also covers the choice of the test images: from which images each run got right, as "
        "crossed random effects of seeds and images; of a single run it covers the images alone.",
    ),
    Column(
        "points vs short, equal FLOPs",
        lambda row: end_and_average(row, "difference_at_equal_flops_points"),
        "Accuracy minus what shortened training reaches for the same total FLOPs: per seed, on a monotone cubic curve "
        "through the short budgets and full over the logarithm of the cost (PCHIP). Never extrapolated below the "
        "cheapest budget; a run dearer than full is compared with full. Where data arrive in chunks, several ways of "
        "shortening may be there: short trains its share of each chunk, short-early the first chunk in full as far as "
        "the budget reaches, short-placed whichever allocation did best on validation images. The method is compared "
        "with the way that does best on average at its cost.",
    ),
    Column(
        "points vs short, equal time",
        lambda row: end_and_average(row, "difference_at_equal_time_points"),
        "The same at equal training seconds.",
    ),
    Column(
        "against shortened training",
        standing,
        "A verdict is given on what the experiment declared before it ran: one rule, in the mean over the comparisons "
        "of a model, data at once and streams apart. It beats shortened training where it is better at equal FLOPs and "
        "at equal time, in the intervals over seeds and over seeds and images, after Holm's correction over the "
        "declared groups (p at most 0.05, two-sided); one surely behind at the end of a stream is not ahead. A single "
        "comparison is tested only where its group's verdict opens the gate, with a variance moderated by the rule's "
        "other comparisons (Smyth 2004). Everything else is exploratory: figures with plain intervals.",
    ),
    Column(
        "tuned",
        lambda row: (
            clean(row["tuned"]) + (f" (edge of the grid: {clean(row['tuned_edge'])})" if row["tuned_edge"] else "")
            or "-"
        ),
        "What this row's own search on validation images chose, with seeds of its own. A best value at the edge of its "
        "grid may not be the best there is. -: the recipe of the comparison, not tuned.",
    ),
    Column(
        "plan: seeds for ± 0.25",
        planned_seeds,
        "A plan, not a result: the seeds that would give the difference to shortened training (for the controls: to "
        "full) a plain 95 % interval over seeds of ± 0.25 points, if the spread from seed to seed stays what it was so "
        "far. From a few seeds that spread itself is a rough guess.",
    ),
)
COST_COLUMNS = (
    METHOD,
    Column(
        "training s",
        seconds,
        "Time of training with every cost of the method in it: scoring, building the store, recompiling after a drop. "
        "By the median step times or raw, whichever scatters less over the controls (said above the table). By medians: "
        "the median of each kind of step times the steps made, plus building, so that a stall of the machine does not "
        "count; the raw seconds on the clock then stand beside it. Evaluation, "
        "data preparation, first compile and cost table stand apart in the figure.",
    ),
    Column(
        "time ÷ full",
        time_ratio,
        "Training time over that of full with the same seed: geometric mean [95 % interval].",
    ),
    Column(
        "forward FLOPs saved %",
        lambda row: plus_minus(row, "forward_flops_reduction_percent", 1),
        "Forward FLOPs not executed, of those of the full recipe (2 per multiply-add; store building counts as "
        "executed). Freezing alone saves none.",
    ),
    Column(
        "all FLOPs saved %",
        lambda row: plus_minus(row, "total_flops_reduction_percent", 1),
        "The same for forward and backward together.",
    ),
    Column(
        "realised ÷ predicted",
        lambda row: spanned(row, "realised_over_predicted", "", 2),
        "Seconds saved against full, over the saving that the measured cost of each stage predicts for the same "
        "drops: what the engine itself loses. FLOPs do not predict time.",
    ),
    Column(
        "stages dropped",
        lambda row: several(row, " of ", ("dropped_stages_mean", "stage_count_max")),
        "Stages gone at the end of training, mean over seeds.",
    ),
    Column(
        "store build + scoring s",
        lambda row: several(row, " + ", ("cache_build_seconds_mean", "scoring_seconds_mean")),
        "What the method itself cost, mean over seeds; contained in training s.",
    ),
    Column(
        "peak / store MiB",
        lambda row: several(row, " / ", ("peak_memory_bytes_max", "store_bytes_max"), 2**-20),
        "Largest memory of any seed, and the largest store of activations.",
    ),
    ENERGY,
)
TARGET_COLUMNS = (
    METHOD,
    Column(
        "reached",
        reached,
        "Runs that ended within half a point of full's mean accuracy. Diverged and failed ones are misses.",
    ),
    Column(
        "seconds until reached",
        lambda row: to_target(row, "train_seconds"),
        "What it takes, on average, until a run ends at the target: the cost of all runs, misses included, over the "
        "number that reached it (expected running time; Hansen et al.), with a 95 % interval from the spread of costs "
        "and the chance of a hit (MOVER with Wilson's interval), the target itself taken as given.",
    ),
    Column(
        "FLOPs until reached", lambda row: to_target(row, "total_flops"), "The same in FLOPs, forward and backward."
    ),
    Column("energy until reached", lambda row: to_target(row, "energy_joules"), "The same in joules where metered."),
)
SLOPE_MEANING = (
    "Frontier slope: accuracy points gained by doubling the training budget (least squares over the logarithm of the "
    "budget, per seed, with 95 % interval). Where the interval holds 0 and ends below half a point, the recipe is "
    "saturated: training less costs next to nothing here, every method ties, and the comparison says nothing. Where it "
    "holds 0 and reaches further, too few seeds were run to tell."
)
CHECK_MEANING = (
    "The frontier's own check: each budget's runs less what the frontier through the other budgets gives at their cost. "
    "Above 0 the frontier lies too low, which flatters methods. The gap around a budget that is left out is about twice "
    "the gap that methods are compared in, so the error there is smaller; a few tenths of a point are the runs' own "
    "scatter."
)
