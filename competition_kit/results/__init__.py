"""What is read off finished cells: scores, ensembles, submissions, reports. Imports no torch."""
