"""Running one job from composed config to record."""
