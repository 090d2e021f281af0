"""Everything that looks at a run: `state` folds the events into one picture, the other files draw it.

`lines` is the plain text, `dashboard` the full screen (`panels` its pieces, `charts` and `pictures` its graphics,
`painter` and `keys` its terminal),
`page` and `figures` the HTML of report and compare. None of it is imported by anything that trains.
"""
