"""Agreement of scorers with human rankings: metrics, confidence intervals, and files of rankings."""
