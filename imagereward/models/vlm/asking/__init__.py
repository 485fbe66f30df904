"""What a judge is asked, and how its answer becomes a number"""
