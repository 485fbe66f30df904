"""Released checkpoints: what is known of each, and files to loaded scorers and back."""
