"""What the base model knows of the class: images or predictions made before training, and an identifier that means nothing yet."""
