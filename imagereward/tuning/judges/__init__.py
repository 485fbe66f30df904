"""Training a reward head on a vision-language model from human rankings"""
