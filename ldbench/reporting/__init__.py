"""From records to verdicts: comparisons, their statistics, tables, figures and the page.

``report.write_report`` is the way in; ``summary.summarize`` gives the numbers alone.
"""
