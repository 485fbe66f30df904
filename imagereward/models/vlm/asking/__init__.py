"""What a judge is asked: templates, chat turns, questions from files; and how written verdicts are read"""
