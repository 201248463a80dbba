"""Statistics of a teacher's layers over the training images: collected once, matched by G-VBSM and EDC."""
