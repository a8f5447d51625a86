"""``litefs bench``: a load generator for databases in any directory, on a mount or not."""
