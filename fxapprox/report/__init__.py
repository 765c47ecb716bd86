"""The report of a graph: the record, how it is made, and what it can be turned into."""
