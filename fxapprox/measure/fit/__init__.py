"""The largest batch that fits into an amount of memory."""
