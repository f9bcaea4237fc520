"""Opponents: the methods of the paper's Table 3 and the simple ones that are hard to beat."""
