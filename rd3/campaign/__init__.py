"""Run many recipes on one machine, without Ray or MLflow: ``python -m rd3.run RECIPES...``.

``queue`` decides which recipe is next and ``estimates`` whether there is time for it; ``runner`` runs it, in one of the
processes of ``workers``; ``scheduler`` connects these, ``view`` prints progress, ``command`` is the command line.
"""
