"""What a person types: commands, help, explanations and the doctor. It knows every wing below and none knows it."""
