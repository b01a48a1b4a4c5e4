"""``report.html``: one run on one page, drawn at home from the files of the run alone."""
