"""Which clips repeat others: exactly, nearly or in meaning. Pure: tables in, tables out."""
