"""What plan decides with: the choices for each value, and the minimum cut among them."""
