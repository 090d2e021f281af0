"""Everything that looks at a run and changes nothing in it: log, dashboard, report, comparison. All read one stream of events."""
