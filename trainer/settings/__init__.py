"""What a person asked for: one schema, its layers, other programs' spellings, and checks that need no photo and no model."""
