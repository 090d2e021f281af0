"""Plans held against the card: by a probe that somebody asked for, and by the second step of every run."""
