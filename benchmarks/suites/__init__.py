"""One module a suite: `suite(options)` yields rows. `python -m benchmarks SUITE` times, prints and keeps them."""
