"""From records to verdicts: comparisons, their statistics, tables, figures and the page. ``ldbench.report`` is the way in."""
