"""Flow-matching transformers, and the text encoders that came with them: what one has in common with another, and what not."""
