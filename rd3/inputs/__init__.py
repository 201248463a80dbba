"""Images and labels from outside: every form in which they come, the checks on them, and the sentences about them.

``rd3.evaluate``, ``rd3 set import`` and ``rd3 data add`` all take their input through this package, so that the same
input is accepted or refused everywhere with the same words.
"""
