"""What the suites share: the work that is measured, jobs as other programs, timing, and the rows that come of it."""
