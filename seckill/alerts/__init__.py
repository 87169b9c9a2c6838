"""Alerts: what a person is told, once and clearly, of what does not heal by itself."""
