"""The measure of Shapes, and scorers, against the truth of Shapes."""
