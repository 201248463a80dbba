"""Running a plan: the driver, Ray Tune, the trials that workers run, and what a person sees meanwhile."""
