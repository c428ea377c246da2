"""Pages: the report of a run, the page of a study, their plots and templates."""
