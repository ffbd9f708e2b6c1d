"""Training of one fold: model, objective, strategy steps and the loop. Needs torch."""
