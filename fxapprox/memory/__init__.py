"""What is in memory when: kernels, timelines, what is held between forward and backward, settings by their peak."""
