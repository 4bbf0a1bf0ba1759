"""The ops, one a file: what each computes, its checks, and its registration for every device."""
