"""Reports: one page and one Markdown table from the runs of a suite (`python -m dataseg.report`)."""
