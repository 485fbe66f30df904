"""The inputs of bulk scoring: tables, folders of images and WebDataset shards, read as numbered rows."""
