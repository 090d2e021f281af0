"""One run from photos to export: `stages` tells the story, `loop` is the training loop, the rest prepares, keeps and ends."""
