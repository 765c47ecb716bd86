"""Questions about the values of a graph, answered without changing it."""
