"""What goes wrong in training, by name, while it goes on: rules over metrics, each a small pure function."""
