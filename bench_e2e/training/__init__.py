"""The ops as training calls them, forward and backward: ours against eager, Inductor and who else is installed."""
