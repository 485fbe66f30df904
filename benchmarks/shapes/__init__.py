"""Accuracy of the measure of Shapes, and of scorers, on images of Shapes with known truth."""
