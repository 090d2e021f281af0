"""A strength is proposed by the score of a judge's readings, each compared with the base model's."""

from trainer.guard import proposal
from trainer.settings.config import Guard

READINGS = {  # subject, prompt, drift
    0.0: (0.0, 0.9, 0.0),
    0.5: (0.4, 0.8, 0.1),
    0.8: (0.7, 0.7, 0.2),
    1.0: (0.8, 0.5, 0.6),
}


class Told:
    """Pictures whose readings are known."""

    def __init__(self):
        self.judge, self.share, self.seen = self, 1.0, []
        self.name = "of this test"

    def read(self, controls):
        self.seen.append(self.share)
        return dict(zip(("subject", "prompt", "drift"), READINGS[self.share], strict=True))


def test_the_best_score_is_proposed_and_the_base_model_is_read_first():
    told = Told()
    notice = proposal.proposed(told, Guard(), lambda share: setattr(told, "share", share), [0.5, 0.8, 1.0])
    assert told.seen == [0.0, 0.5, 0.8, 1.0]
    assert "proposes strength 0.8" in notice.text and "0.5: 1.10, 0.8: 1.20, 1: 0.70" in notice.text
