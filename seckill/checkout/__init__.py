"""From a group of orders to one global transaction to an outcome per order. One module per transaction pattern.

Nothing here is taken from the coordinator's word alone: an order's fate is what its reservation row says.
"""
