"""``make held-out``: predict the break-even map of a virtual cluster, freeze it, measure it on shaped links."""
