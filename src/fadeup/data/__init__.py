"""Data sets, one file each. Every one says how to obtain the data when it is missing."""
