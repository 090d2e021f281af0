"""One thread per process: tests run side by side (pytest-xdist), and sums in a fixed order compare bit for bit. And a test
that shows what people can bring or take fails while the README's tables do not say it."""

import os

import pytest
import shown
import torch

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    shows = [str(value) for name, value in item.user_properties if name == "shows"]
    if (
        report.when != "call" or not report.passed or "TABLES_ANEW" in os.environ
    ):  # the run that the tables are made from
        return report
    if shows and (why := shown.stale(shows, shown.README.read_text(encoding="utf-8"))):
        report.outcome, report.longrepr = "failed", why
    return report
