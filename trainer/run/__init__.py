"""One run from photos to export: `stages` tells the story, `loop` is the training loop, the rest gets things ready for them."""
