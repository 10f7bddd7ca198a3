"""From records to verdicts: comparisons, their statistics, tables, figures and the page. ``ldbench.reporting.report`` is the way in."""
