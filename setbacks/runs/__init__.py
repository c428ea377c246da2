"""A run on disk and at work: its folder, its journals, its progress."""
