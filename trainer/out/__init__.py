"""What a run leaves behind for others: checkpoints that resume to the bit, and exported models in the formats of the field."""
