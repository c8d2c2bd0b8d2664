"""Sources of rows: files, the Hub and Python objects; and the rows of them that are held out."""
