"""What the command line does with its words, files and texts."""
