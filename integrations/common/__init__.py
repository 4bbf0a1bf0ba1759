"""What the plugins of both engines share: none of it knows an engine."""
