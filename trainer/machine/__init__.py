"""The machine itself: its memory, its clock, who is visiting the card."""
