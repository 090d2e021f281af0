"""The machine itself: its memory, its clock, its libraries, its cards together, who is visiting the card."""
