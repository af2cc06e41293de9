"""Anyone's table: from a file to labels and features, with a word on how everything was read."""
