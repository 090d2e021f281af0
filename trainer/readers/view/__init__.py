"""Everything that looks at a run: `state` folds the events into one picture, the other files draw it.

`lines` is the plain text; `dashboard` the full screen, with `panels` its pieces, `charts` and `pictures` its graphics,
`terminal` and `keys` what it stands on; `page`, `figures` and `usage` the HTML. Nothing that trains imports any of it.
"""
