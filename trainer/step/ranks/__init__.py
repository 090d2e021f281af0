"""One step on several ranks: who has which slice of what, what they tell each other, and when an update is over."""
