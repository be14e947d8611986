"""Programs that look at data: checks and statistics."""
