"""From ledger entries to tables, figures and report pages, with the paper's values beside them."""
