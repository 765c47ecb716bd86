"""What every pass reads: graphs and what is known of their operators, and the records that passes hand each other."""
