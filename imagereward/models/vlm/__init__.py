"""Vision-language models as scorers: templates, three ways of reading a score, and reuse of what prompts share"""
