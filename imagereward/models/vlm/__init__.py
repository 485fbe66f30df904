"""Vision-language models as scorers: three read-outs, comparisons, and what prompts share computed once"""
