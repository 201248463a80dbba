"""Many recipes on one machine, with no engine: ``python -m rd3.run RECIPES...``.

``queue`` says which recipe is next, ``estimates`` whether there is time for it, ``maker`` makes it, ``crew`` holds the
processes that do, ``course`` brings them together, ``view`` tells people, ``command`` is the command line.
"""
