"""Tables, figures and report pages from ledger entries, with the paper's values for comparison."""
