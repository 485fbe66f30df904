"""Tables, folders and shards to rows of a prompt and an image."""
