"""The moving average against its formula."""

import torch

from trainer.step.ema import Average


def test_the_average_follows_at_first_and_lags_later():
    average = Average([("w", torch.zeros(2))], decay=0.5)
    average.update([("w", torch.ones(2))])
    torch.testing.assert_close(average.values["w"], torch.full((2,), 1 - 2 / 11))  # d_1 = (1 + 1) / (10 + 1)
    for _ in range(60):
        average.update([("w", torch.ones(2))])
    before = average.values["w"].clone()
    average.update([("w", torch.full((2,), 3.0))])
    torch.testing.assert_close(average.values["w"], 0.5 * before + 1.5)
