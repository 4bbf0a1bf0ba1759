"""The ops' own benchmark: ours against eager, Inductor and the kernels of whichever engines are installed."""
