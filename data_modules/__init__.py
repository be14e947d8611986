"""Everything that turns files on disk into samples and batches."""
