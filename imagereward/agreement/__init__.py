"""Agreement of scorers with human rankings."""
