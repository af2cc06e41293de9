"""Which labels of a table of one's own are wrong?"""
