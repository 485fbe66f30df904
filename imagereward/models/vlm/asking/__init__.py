"""What a judge is asked, and how its answer becomes a number: templates, verdicts, questions, turns of a chat"""
