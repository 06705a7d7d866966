"""Search for clips that repeat others: exactly, nearly or in meaning."""
