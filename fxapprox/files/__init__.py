"""What is saved to files and read again: plans, sensitivities; files are written as a whole or not at all."""
