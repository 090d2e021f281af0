"""From photos to batches: what was found and how it is cut, what the encoders made of it, and which rows a step takes."""
