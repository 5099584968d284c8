"""The names of the conditions that ACT compares, and of the split that it may learn from."""

NONE, BIAS, BEST, BEST_BIAS = "no heads", "label bias alone", "best heads", "best heads + label bias"
WORST, ALL, RANDOM = "worst heads", "all heads", "random heads"
ORDER = (NONE, BIAS, BEST, BEST_BIAS, RANDOM, ALL, WORST)
CALIBRATION = "calibration"
"""The split that heads are chosen on and label biases are fitted on; the others are held out."""
