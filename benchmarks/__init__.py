"""Side-by-side measurements: each prints a table with hardware and versions, and writes JSON."""
