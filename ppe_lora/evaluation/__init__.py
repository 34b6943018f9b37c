"""How good the answers are: metrics, the trivial predictor, the choice of an epoch. Pure functions over tables."""
