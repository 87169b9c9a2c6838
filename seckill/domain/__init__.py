"""What an order is and how it can end: frozen types, outcomes, reasons, errors. Standard library only, no I/O."""
