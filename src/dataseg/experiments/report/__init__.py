"""Reports: one page and one Markdown file from the runs of a suite."""
