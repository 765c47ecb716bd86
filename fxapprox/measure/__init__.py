"""What is measured by running steps: memory, gradients, sensitivities; and what fits into memory."""
