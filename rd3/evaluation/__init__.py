"""Post-evaluation: students trained on a synthetic set under a protocol, alone or in packs."""
