"""The architectures that the table of networks builds; each takes the number of classes and the side in pixels."""
