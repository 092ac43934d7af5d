"""What is read from the tables of one or two models."""
