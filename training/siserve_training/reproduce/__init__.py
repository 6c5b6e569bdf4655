"""The paper's tables, run anew: rows, runs side by side, results beside the paper's numbers."""
