"""The error of gradients in each number of bits, and what to use."""
