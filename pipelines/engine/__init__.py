"""Running a plan: the driver, Ray Tune, the trials in workers, and the progress display."""
