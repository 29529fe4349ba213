"""Generated data: rendered shapes, simulated action labels, random numbers."""
