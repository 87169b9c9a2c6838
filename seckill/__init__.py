"""A flash-sale order pipeline: exact stock, no lost order, every order one TCC global transaction."""

__version__ = "0.1.0"
