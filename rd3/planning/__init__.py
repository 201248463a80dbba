"""What a result is made from and what it costs, before anything runs."""
